package kvstore

import (
	"context"
	"errors"
	"math"
	"net"
	"reflect"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

func answering(name string) *fake {
	return &fake{onGet: func(context.Context, *pb.GetRequest) (*pb.GetResponse, error) {
		return &pb.GetResponse{Key: name, Content: &pb.GetResponse_Value{Value: "1"}}, nil
	}}
}

func failing(err error) *fake {
	return &fake{onGet: func(context.Context, *pb.GetRequest) (*pb.GetResponse, error) { return nil, err }}
}

func TestCallsStayAtTheEndpointThatAnswers(t *testing.T) {
	sick, well := failing(noLeader).start(t), answering("well").start(t)
	client, _ := connect(t, Config{}, sick, well)
	for range 3 {
		if entry, err := client.Get(context.Background(), "a"); err != nil || entry.Key != "well" {
			t.Fatalf("%v, %v", entry, err)
		}
	}
	if sick.calls.Load() != 1 || well.calls.Load() != 3 {
		t.Fatalf("%d calls at the sick endpoint, %d at the other", sick.calls.Load(), well.calls.Load())
	}
}

func TestAnAnswerThatIsARefusalKeepsTheEndpoint(t *testing.T) {
	first, second := failing(refusal(codes.InvalidArgument, "INVALID_KEY")).start(t), answering("second").start(t)
	client, _ := connect(t, Config{}, first, second)
	for range 2 {
		_, err := client.Get(context.Background(), "a")
		mustBe(t, err, ErrInvalidArgument)
	}
	if first.calls.Load() != 2 || second.calls.Load() != 0 {
		t.Fatalf("%d and %d calls", first.calls.Load(), second.calls.Load())
	}
}

func TestAnEndpointWhereNobodyListensIsLeft(t *testing.T) {
	well := answering("well").start(t)
	client, _ := connect(t, Config{Endpoints: []string{unusedAddress(t)}}, well)
	if entry, err := client.Get(context.Background(), "a"); err != nil || entry.Key != "well" {
		t.Fatalf("%v, %v", entry, err)
	}
}

func TestAnEndpointThatStopsIsLeft(t *testing.T) {
	one, two := answering("one").start(t), answering("two").start(t)
	client, _ := connect(t, Config{}, one, two)
	for _, step := range []struct {
		stop *fake
		want string
	}{{nil, "one"}, {one, "two"}} {
		if step.stop != nil {
			step.stop.server.Stop()
		}
		if entry, err := client.Get(context.Background(), "a"); err != nil || entry.Key != step.want {
			t.Fatalf("%v, %v; want an answer of %q", entry, err, step.want)
		}
	}
}

func TestAnEndpointThatAnswersTooLateIsLeftByTheNextCall(t *testing.T) {
	release := make(chan struct{})
	late := (&fake{onGet: func(context.Context, *pb.GetRequest) (*pb.GetResponse, error) {
		<-release
		return nil, noLeader
	}}).start(t)
	defer close(release)
	client, _ := connect(t, Config{Timeout: 200 * time.Millisecond}, late, answering("well").start(t))
	_, err := client.Get(context.Background(), "a")
	mustBe(t, err, nil)
	if entry, err := client.Get(context.Background(), "a"); err != nil || entry.Key != "well" {
		t.Fatalf("%v, %v", entry, err)
	}
}

func TestAnEndpointThatSaysItIsLateIsLeftByTheNextCall(t *testing.T) {
	late := failing(refusal(codes.DeadlineExceeded, "DEADLINE_EXCEEDED")).start(t)
	client, _ := connect(t, Config{}, late, answering("well").start(t))
	_, err := client.Get(context.Background(), "a")
	if mustBe(t, err, nil); !errors.Is(err, context.DeadlineExceeded) || late.calls.Load() != 1 {
		t.Fatalf("%v after %d calls", err, late.calls.Load())
	}
	if entry, err := client.Get(context.Background(), "a"); err != nil || entry.Key != "well" {
		t.Fatalf("%v, %v", entry, err)
	}
}

func TestACancelledCallKeepsItsEndpoint(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	first := answering("first")
	answer := first.onGet
	first.onGet = func(serving context.Context, request *pb.GetRequest) (*pb.GetResponse, error) {
		if first.calls.Load() == 1 {
			cancel()
			return nil, silent(serving)
		}
		return answer(serving, request)
	}
	client, _ := connect(t, Config{}, first.start(t), answering("second").start(t))
	_, err := client.Get(ctx, "a")
	if mustBe(t, err, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if entry, err := client.Get(context.Background(), "a"); err != nil || entry.Key != "first" {
		t.Fatalf("%v, %v", entry, err)
	}
}

func TestEndpointsComeFromTheConfigurationTheEnvironmentOrTheDefault(t *testing.T) {
	for _, c := range []struct {
		given       []string
		environment string
		want        []string
	}{
		{nil, "", []string{"http://127.0.0.1:9090"}},
		{nil, " http://a:1 , b:2", []string{"http://a:1", "b:2"}},
		{nil, "a:1,,b:2", []string{"a:1", "", "b:2"}},
		{[]string{"c:3"}, "a:1", []string{"c:3"}},
	} {
		t.Setenv("KVSTORE_ENDPOINTS", c.environment)
		if got := endpointsOf(Config{Endpoints: c.given}); !reflect.DeepEqual(got, c.want) {
			t.Errorf("given %q, environment %q: %q, want %q", c.given, c.environment, got, c.want)
		}
	}
}

func TestEndpointsInAnyFormAreTaken(t *testing.T) {
	server := answering("well").start(t)
	for _, form := range []string{"%", "http://%", "http://%/"} {
		client, _ := connect(t, Config{Endpoints: []string{strings.ReplaceAll(form, "%", server.address)}})
		if _, err := client.Get(context.Background(), "a"); err != nil {
			t.Errorf("%s: %v", form, err)
		}
	}
	for _, taken := range []string{"[::1]:9090", "https://kv.example:443", "n1:9090"} {
		client, err := New(Config{Endpoints: []string{taken}})
		if err != nil {
			t.Errorf("%s: %v", taken, err)
			continue
		}
		_ = client.Close()
	}
}

func TestAWrongConfigurationIsRefused(t *testing.T) {
	for _, wrong := range []string{"", "host", "http://host", ":9090", "host:", "host:port", "host:0", "host:65536", "http://host:1/path", "ftp://host:1", "host:1?a", "u@host:1"} {
		_, err := New(Config{Endpoints: []string{wrong}})
		if mustBe(t, err, ErrInvalidArgument); !strings.Contains(err.Error(), wrong) {
			t.Errorf("%q is not named in: %v", wrong, err)
		}
	}
	_, err := New(Config{Timeout: -1})
	mustBe(t, err, ErrInvalidArgument)
}

func TestAClosedClientSaysSo(t *testing.T) {
	entered := make(chan struct{})
	server := (&fake{onPut: func(ctx context.Context, _ *pb.PutRequest) (*pb.PutResponse, error) {
		close(entered)
		return nil, silent(ctx)
	}}).start(t)
	client, _ := connect(t, Config{}, server)
	inFlight := make(chan error)
	go func() {
		_, err := client.Put(context.Background(), "a", 1)
		inFlight <- err
	}()
	<-entered
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-inFlight; !errors.Is(err, ErrClosed) || !errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("the write in flight: %v", err)
	}
	_, err := client.Get(context.Background(), "a")
	mustBe(t, err, ErrClosed)
	_, err = client.Session(context.Background())
	mustBe(t, err, ErrClosed)
	if err := client.Close(); err != nil {
		t.Fatalf("closing again: %v", err)
	}
}

func TestClosingTheClientEndsItsStreams(t *testing.T) {
	server := (&fake{onScan: func(request *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
		_ = scanOf("a")(request, stream)
		return silent(stream.Context())
	}, onSession: breakAfter(2, nil)}).start(t)
	client, _ := connect(t, Config{}, server)
	session, err := client.Session(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	get := session.Get(context.Background(), "a")
	for entry, err := range client.Scan(context.Background()) {
		if entry != nil {
			_ = client.Close()
			continue
		}
		mustBe(t, err, ErrClosed)
	}
	_, err = get.Wait(context.Background())
	mustBe(t, err, ErrClosed)
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAMissingKeyIsNil(t *testing.T) {
	client, _ := connect(t, Config{}, failing(refusal(codes.NotFound, "KEY_NOT_FOUND")).start(t))
	if entry, err := client.Get(context.Background(), "a"); entry != nil || err != nil {
		t.Fatalf("%v, %v", entry, err)
	}
	client, _ = connect(t, Config{}, failing(refusal(codes.NotFound, "UNKNOWN_PATH")).start(t))
	_, err := client.Get(context.Background(), "a")
	mustBe(t, err, nil)
}

func TestAnEntryHasWhatWasStored(t *testing.T) {
	seconds := uint32(60)
	answer := &pb.GetResponse{}
	client, _ := connect(t, Config{}, (&fake{onGet: func(context.Context, *pb.GetRequest) (*pb.GetResponse, error) { return answer, nil }}).start(t))
	for _, c := range []struct {
		answer *pb.GetResponse
		want   Entry
	}{
		{&pb.GetResponse{Key: "a", Version: 3, Ttl: &seconds, Content: &pb.GetResponse_Value{Value: "1"}}, Entry{Key: "a", Version: 3, TTL: time.Minute, Text: "1"}},
		{&pb.GetResponse{Key: "a", Content: &pb.GetResponse_Raw{Raw: []byte("\x00\xff")}}, Entry{Key: "a", Raw: []byte("\x00\xff")}},
		{&pb.GetResponse{Key: "a", Content: &pb.GetResponse_Raw{}}, Entry{Key: "a", Raw: []byte{}}},
		{&pb.GetResponse{Key: "a"}, Entry{Key: "a"}},
	} {
		answer = c.answer
		got, err := client.Get(context.Background(), "a")
		if err != nil || !reflect.DeepEqual(*got, c.want) {
			t.Errorf("got %#v, %v; want %#v", got, err, c.want)
		}
	}
}

func TestJSONIsDecodedOnDemand(t *testing.T) {
	var user struct{ Name string }
	if err := (&Entry{Key: "a", Text: `{"name":"Ada"}`}).JSON(&user); err != nil || user.Name != "Ada" {
		t.Fatalf("%v, %v", user, err)
	}
	if err := (&Entry{Key: "a", Raw: []byte{}}).JSON(&user); err == nil || !strings.Contains(err.Error(), "raw") {
		t.Fatalf("raw bytes: %v", err)
	}
}

func TestValuesBecomeJSONAsTheyAre(t *testing.T) {
	var got *pb.PutRequest
	client, _ := connect(t, Config{}, (&fake{onPut: func(_ context.Context, request *pb.PutRequest) (*pb.PutResponse, error) {
		got = request
		return &pb.PutResponse{}, nil
	}}).start(t))
	ctx := context.Background()
	for _, c := range []struct {
		value any
		want  string
	}{
		{map[string]any{"b": 1, "a": "<&>"}, `{"a":"<&>","b":1}`}, {nil, "null"}, {"text\n", `"text\n"`}, {1.5, "1.5"}, {[]int{1, 2}, "[1,2]"},
	} {
		if _, err := client.Put(ctx, "a", c.value); err != nil || got.GetValue() != c.want {
			t.Errorf("%v became %q, %v; want %q", c.value, got.GetValue(), err, c.want)
		}
	}
	if _, err := client.PutText(ctx, "a", " {\"x\":  1.0}\n"); err != nil || got.GetValue() != " {\"x\":  1.0}\n" {
		t.Errorf("text became %q, %v", got.GetValue(), err)
	}
	if _, err := client.PutRaw(ctx, "a", []byte("\xff")); err != nil || string(got.GetRaw()) != "\xff" {
		t.Errorf("raw became %q, %v", got.GetRaw(), err)
	}
	_, err := client.Put(ctx, "a", math.Inf(1))
	mustBe(t, err, ErrInvalidArgument)
}

func TestWhatCannotBeSentIsRefusedBeforeItLooksLikeABrokenConnection(t *testing.T) {
	client, _ := connect(t, Config{}, (&fake{}).start(t))
	ctx, wrong := context.Background(), "a\xff"
	for name, call := range map[string]func() error{
		"key of Put":         func() error { _, err := client.Put(ctx, wrong, 1); return err },
		"value of PutText":   func() error { _, err := client.PutText(ctx, "a", wrong); return err },
		"request id":         func() error { _, err := client.Put(ctx, "a", 1, WithRequestID(wrong)); return err },
		"key of Get":         func() error { _, err := client.Get(ctx, wrong); return err },
		"key of Delete":      func() error { _, err := client.Delete(ctx, wrong); return err },
		"key of BatchPut":    func() error { _, err := client.BatchPut(ctx, map[string]any{wrong: 1}); return err },
		"value of BatchPut":  func() error { _, err := client.BatchPutText(ctx, map[string]string{"a": wrong}); return err },
		"key of BatchGet":    func() error { _, err := client.BatchGet(ctx, []string{wrong}); return err },
		"prefix of Range":    func() error { return firstError(client.Range(ctx, WithPrefix(wrong))) },
		"start of Scan":      func() error { return firstError(client.Scan(ctx, WithStart(wrong))) },
		"ttl with fractions": func() error { _, err := client.Put(ctx, "a", 1, WithTTL(1500*time.Millisecond)); return err },
		"ttl of 0":           func() error { _, err := client.Put(ctx, "a", 1, WithTTL(0)); return err },
		"ttl below 0":        func() error { _, err := client.Put(ctx, "a", 1, WithTTL(-time.Second)); return err },
		"ttl above 32 bits":  func() error { _, err := client.Put(ctx, "a", 1, WithTTL((math.MaxUint32+1)*time.Second)); return err },
		"ttl of a Get":       func() error { _, err := client.Get(ctx, "a", WithTTL(time.Second)); return err },
		"prefix of a Put":    func() error { _, err := client.Put(ctx, "a", 1, WithPrefix("a")); return err },
		"page size of Scan":  func() error { return firstError(client.Scan(ctx, WithPageSize(1))) },
		"window of 0":        func() error { _, err := client.Session(ctx, WithWindow(0)); return err },
	} {
		if err := call(); err == nil {
			t.Errorf("%s: no error", name)
		} else {
			mustBe(t, err, ErrInvalidArgument)
		}
	}
}

func TestARefusedOptionIsNamed(t *testing.T) {
	client, _ := connect(t, Config{}, (&fake{}).start(t))
	_, err := client.Get(context.Background(), "a", WithIfVersion(1))
	if want := "WithIfVersion does not apply to Get"; err == nil || !strings.Contains(err.Error(), want) {
		t.Fatalf("%v, want %q", err, want)
	}
}

func TestOptionsReachTheServer(t *testing.T) {
	var got *pb.PutRequest
	server := (&fake{onPut: func(_ context.Context, request *pb.PutRequest) (*pb.PutResponse, error) {
		got = request
		return &pb.PutResponse{}, nil
	}}).start(t)
	client, _ := connect(t, Config{}, server)
	if _, err := client.Put(context.Background(), "a", 1, WithTTL(time.Minute), WithIfVersion(0), WithRequestID("id")); err != nil {
		t.Fatal(err)
	}
	if got.GetTtl() != 60 || got.IfVersion == nil || got.GetIfVersion() != 0 || got.GetRequestId() != "id" {
		t.Fatalf("%v", got)
	}
	if _, err := client.Put(context.Background(), "a", 1); err != nil || got.Ttl != nil || got.IfVersion != nil {
		t.Fatalf("%v, %v", got, err)
	}
}

func TestAnEndpointThatTakesConnectionsAndSaysNothingIsLeft(t *testing.T) {
	t.Parallel()
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	client, _ := connect(t, Config{Endpoints: []string{mute.Addr().String()}}, answering("well").start(t))
	if entry, err := client.Get(context.Background(), "a"); err != nil || entry.Key != "well" {
		t.Fatalf("%v, %v", entry, err)
	}
}

func TestAServerThatComesBackIsFoundByTheSameCall(t *testing.T) {
	t.Parallel()
	server := answering("back")
	server.start(t)
	client, _ := connect(t, Config{}, server)
	if _, err := client.Get(context.Background(), "a"); err != nil {
		t.Fatal(err)
	}
	server.server.Stop()
	waits := 0
	client.random = func(bound time.Duration) time.Duration { return bound / 2 }
	client.sleep = func(ctx context.Context, wait time.Duration) {
		if waits++; waits == 3 {
			server.startAt(t, server.address)
		}
		sleep(ctx, wait)
	}
	if entry, err := client.Get(context.Background(), "a"); err != nil || entry.Key != "back" || waits < 3 {
		t.Fatalf("%v, %v after %d waits", entry, err, waits)
	}
}
