package kvstore_test

import (
	"os/exec"
	"strings"
	"testing"
)

// The examples run as a reader would run them.
func TestExamplesRun(t *testing.T) {
	serve(t)
	for name, want := range map[string]string{
		"quickstart": "Ada is 36; stored as {\"name\":\"Ada\",\"age\":36}, expires in 1h0m0s\nsomebody was faster: read again, then decide\ndeleted: true still there: false\n",
		"ranges":     "planet/1 \"Mercury\"\nplanet/2 \"Venus\"\nplanet/3 \"Earth\"\nplanet/4 \"Mars\"\nthe last key is planet/5\n",
		"session":    "the last value is 9999\n",
	} {
		t.Run(name, func(t *testing.T) {
			output, err := exec.Command("go", "run", "./examples/"+name).CombinedOutput()
			if err != nil || !strings.HasSuffix(string(output), want) {
				t.Fatalf("%v; printed:\n%s\nwant at the end:\n%s", err, output, want)
			}
		})
	}
}
