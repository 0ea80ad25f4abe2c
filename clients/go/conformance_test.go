package kvstore_test

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/protobuf/encoding/protojson"

	kvstore "github.com/kvstore/kvstore/clients/go"
)

// What is in ../conformance; its README says what the fields mean. JSON values are compared as any, with numbers as json.Number.

type testCase struct {
	Name    string
	Clients []string
	Steps   []map[string]any
}

// serve gives a client of the server that the tests run against.
func serve(t *testing.T) *kvstore.Client {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a server: run without -short")
	}
	if os.Getenv("KVSTORE_ENDPOINTS") == "" {
		t.Fatal("KVSTORE_ENDPOINTS is not set: name a running server, such as KVSTORE_ENDPOINTS=http://127.0.0.1:9090, or give -short to leave this test out")
	}
	client, err := kvstore.New(kvstore.Config{Timeout: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return client
}

func TestConformance(t *testing.T) {
	client := serve(t)
	files, err := filepath.Glob("../conformance/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no cases in ../conformance: %v", err)
	}
	for _, file := range files {
		for _, c := range readCases(t, file) {
			t.Run(strings.TrimSuffix(filepath.Base(file), ".json")+"/"+c.Name, func(t *testing.T) {
				if c.Clients != nil && !slices.Contains(c.Clients, "go") {
					t.Skipf("only for %v", c.Clients)
				}
				run := &caseRun{t: t, client: client, prefix: "p" + randomHex(), kept: map[string]any{}}
				for number, step := range c.Steps {
					run.step(number+1, step)
				}
			})
		}
	}
}

func readCases(t *testing.T, file string) (cases []testCase) {
	t.Helper()
	content, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	decoder := json.NewDecoder(content)
	decoder.UseNumber()
	if err := decoder.Decode(&cases); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return cases
}

func randomHex() string {
	var id [8]byte
	_, _ = rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// caseRun is one run of one case.
type caseRun struct {
	t      *testing.T
	client *kvstore.Client
	prefix string
	kept   map[string]any
}

func (r *caseRun) step(number int, step map[string]any) {
	r.t.Helper()
	arguments := r.expand(step).(map[string]any)
	where := fmt.Sprintf("step %d, %s", number, arguments["op"])
	got, err := r.do(arguments)
	if want, given := arguments["error"].(map[string]any); given {
		var failure *kvstore.Error
		if !errors.As(err, &failure) {
			r.t.Fatalf("%s: got %s, %v; want the error %v", where, shown(got), err, want)
		}
		if have := (map[string]any{"code": code.Code(failure.Code).String(), "reason": failure.Reason}); !reflect.DeepEqual(have, want) {
			r.t.Fatalf("%s: failed with %v; want %v", where, err, want)
		}
		return
	}
	if err != nil {
		r.t.Fatalf("%s: %v", where, err)
	}
	if want, given := arguments["expect"]; given {
		r.compare(want, got, where)
	}
}

var (
	repeat  = regexp.MustCompile(`(?s)^\$REPEAT\((.*),(\d+)\)$`)
	entries = regexp.MustCompile(`(?s)^\$ENTRIES\(([^,]*),(\d+),(.*)\)$`)
)

// expand puts in $P, $REPEAT and $ENTRIES.
func (r *caseRun) expand(value any) any {
	switch value := value.(type) {
	case map[string]any:
		expanded := make(map[string]any, len(value))
		for name, each := range value {
			expanded[r.expand(name).(string)] = r.expand(each)
		}
		return expanded
	case []any:
		expanded := make([]any, len(value))
		for i, each := range value {
			expanded[i] = r.expand(each)
		}
		return expanded
	case string:
		value = strings.ReplaceAll(value, "$P", r.prefix)
		if found := repeat.FindStringSubmatch(value); found != nil {
			count, _ := strconv.Atoi(found[2])
			return strings.Repeat(found[1], count)
		}
		if found := entries.FindStringSubmatch(value); found != nil {
			count, _ := strconv.Atoi(found[2])
			expanded := make(map[string]any, count)
			for number := range count {
				expanded[fmt.Sprintf("%s%06d", found[1], number)] = found[3]
			}
			return expanded
		}
		return value
	default:
		return value
	}
}

// do runs one operation; its result has the names of the suite.
func (r *caseRun) do(step map[string]any) (map[string]any, error) {
	r.t.Helper()
	ctx, options := context.Background(), r.options(step)
	key, _ := step["key"].(string)
	switch step["op"] {
	case "put":
		if raw, given := step["raw_base64"].(string); given {
			bytes, err := base64.StdEncoding.DecodeString(raw)
			if err != nil {
				r.t.Fatal(err)
			}
			version, err := r.client.PutRaw(ctx, key, bytes, options...)
			return map[string]any{"version": number(version)}, err
		}
		version, err := r.client.PutText(ctx, key, step["value"].(string), options...)
		return map[string]any{"version": number(version)}, err
	case "get":
		entry, err := r.client.Get(ctx, key, options...)
		if err == nil && entry == nil {
			return map[string]any{"missing": true}, nil
		}
		return shape(entry), err
	case "delete":
		deleted, err := r.client.Delete(ctx, key, options...)
		return map[string]any{"deleted": deleted}, err
	case "batch_put":
		texts := map[string]string{}
		for key, value := range step["entries"].(map[string]any) {
			texts[key] = value.(string)
		}
		count, err := r.client.BatchPutText(ctx, texts, options...)
		return map[string]any{"count": number(count)}, err
	case "batch_get":
		var keys []string
		for _, key := range step["keys"].([]any) {
			keys = append(keys, key.(string))
		}
		found, err := r.client.BatchGet(ctx, keys, options...)
		return shapes(found), err
	case "range":
		return taken(r.client.Range(ctx, options...))
	case "scan":
		return taken(r.client.Scan(ctx, options...))
	case "stats":
		stats, err := r.client.Stats(ctx)
		if err != nil {
			return nil, err
		}
		text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(stats)
		if err != nil {
			return nil, err
		}
		decoder, named := json.NewDecoder(strings.NewReader(string(text))), map[string]any{}
		decoder.UseNumber()
		return named, decoder.Decode(&named)
	}
	r.t.Fatalf("unknown op %v", step["op"])
	return nil, nil
}

// options turns the fields of a step into options; a field that this client has no option for fails the test.
func (r *caseRun) options(step map[string]any) (options []kvstore.Option) {
	r.t.Helper()
	unsigned := func(value any) uint64 {
		parsed, err := strconv.ParseUint(string(value.(json.Number)), 10, 64)
		if err != nil {
			r.t.Fatal(err)
		}
		return parsed
	}
	for name, value := range step {
		switch name {
		case "op", "key", "value", "raw_base64", "entries", "keys", "expect", "error", "why":
		case "ttl":
			options = append(options, kvstore.WithTTL(time.Duration(unsigned(value))*time.Second))
		case "if_version":
			if saved, given := value.(map[string]any); given {
				value = r.kept[saved["saved"].(string)]
			}
			options = append(options, kvstore.WithIfVersion(unsigned(value)))
		case "request_id":
			options = append(options, kvstore.WithRequestID(value.(string)))
		case "prefix":
			options = append(options, kvstore.WithPrefix(value.(string)))
		case "start":
			options = append(options, kvstore.WithStart(value.(string)))
		case "end":
			options = append(options, kvstore.WithEnd(value.(string)))
		case "limit":
			options = append(options, kvstore.WithLimit(unsigned(value)))
		case "page_size":
			options = append(options, kvstore.WithPageSize(uint32(unsigned(value))))
		case "reverse":
			if value == true {
				options = append(options, kvstore.WithReverse())
			}
		case "keys_only":
			if value == true {
				options = append(options, kvstore.WithKeysOnly())
			}
		default:
			r.t.Fatalf("unknown field %q", name)
		}
	}
	return options
}

// compare checks the fields that want names.
func (r *caseRun) compare(want, got any, where string) {
	r.t.Helper()
	switch want := want.(type) {
	case map[string]any:
		if named, given := got.(map[string]any); given {
			for name, each := range want {
				r.compare(each, named[name], where+"."+name)
			}
			return
		}
		for rule, operand := range want {
			if !r.holds(rule, operand, got) {
				r.t.Fatalf("%s: got %s; want %s %v (%v)", where, shown(got), rule, operand, r.kept)
			}
		}
		if name, given := want["save"].(string); given {
			r.kept[name] = got
		}
	case []any:
		items, _ := got.([]any)
		if len(items) != len(want) {
			r.t.Fatalf("%s: got %d items, want %d: %s", where, len(items), len(want), shown(got))
		}
		for i, each := range want {
			r.compare(each, items[i], fmt.Sprintf("%s[%d]", where, i))
		}
	default:
		if !reflect.DeepEqual(want, got) {
			r.t.Fatalf("%s: got %s, want %s", where, shown(got), shown(want))
		}
	}
}

func (r *caseRun) holds(rule string, operand, got any) bool {
	if got == nil {
		return false
	}
	if name, given := operand.(string); given {
		operand = r.kept[name]
	}
	switch rule {
	case "save":
		return true
	case "same":
		return reflect.DeepEqual(got, operand)
	case "not":
		return !reflect.DeepEqual(got, operand)
	}
	have, limit := got.(json.Number), operand.(json.Number)
	a, _ := have.Float64()
	b, _ := limit.Float64()
	switch rule {
	case "above":
		x, errX := strconv.ParseUint(string(have), 10, 64)
		y, errY := strconv.ParseUint(string(limit), 10, 64)
		return errX == nil && errY == nil && x > y
	case "min":
		return a >= b
	case "max":
		return a <= b
	}
	r.t.Fatalf("unknown rule %q", rule)
	return false
}

func taken(found iter.Seq2[*kvstore.Entry, error]) (map[string]any, error) {
	var entries []*kvstore.Entry
	for entry, err := range found {
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
	return shapes(entries), nil
}

func shapes(entries []*kvstore.Entry) map[string]any {
	items := []any{}
	for _, entry := range entries {
		items = append(items, shape(entry))
	}
	return map[string]any{"items": items, "count": number(len(entries))}
}

// shape names an entry's fields; what is absent is nil.
func shape(entry *kvstore.Entry) map[string]any {
	if entry == nil {
		return nil
	}
	fields := map[string]any{"key": entry.Key, "version": number(entry.Version)}
	if entry.Text != "" {
		fields["value"] = entry.Text
	}
	if entry.Raw != nil {
		fields["raw_base64"] = base64.StdEncoding.EncodeToString(entry.Raw)
	}
	if entry.TTL != 0 {
		fields["ttl"] = number(int(entry.TTL / time.Second))
	}
	return fields
}

func number[N int | uint64](n N) json.Number { return json.Number(fmt.Sprint(n)) }

func shown(value any) string {
	if text := fmt.Sprintf("%#v", value); len(text) <= 300 {
		return text
	} else {
		return fmt.Sprintf("%s... (%d characters)", text[:300], len(text))
	}
}
