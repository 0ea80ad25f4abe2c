package kvstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// putScript answers Puts with the errors in turn, the last one for ever; nil is success. It notes the request ids.
type putScript struct {
	mutex  sync.Mutex
	errors []error
	ids    []string
}

func (s *putScript) next(_ context.Context, request *pb.PutRequest) (*pb.PutResponse, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	s.ids = append(s.ids, request.GetRequestId())
	err := s.errors[0]
	if len(s.errors) > 1 {
		s.errors = s.errors[1:]
	}
	return &pb.PutResponse{Version: 7}, err
}

var (
	bareUnavailable = status.Error(codes.Unavailable, "connection reset")
	noLeader        = refusal(codes.Unavailable, "NO_LEADER")
	overloaded      = refusal(codes.ResourceExhausted, "OVERLOADED")
	outcomeUnknown  = refusal(codes.DeadlineExceeded, "OUTCOME_UNKNOWN")
	mismatch        = refusal(codes.Aborted, "VERSION_MISMATCH")
)

func TestWritesAreRetriedWithTheSameRequestID(t *testing.T) {
	for _, cause := range []error{noLeader, overloaded, outcomeUnknown, bareUnavailable, status.Error(codes.Internal, "stream reset")} {
		script := &putScript{errors: []error{cause, cause, nil}}
		client, _ := connect(t, Config{}, (&fake{onPut: script.next}).start(t))
		version, err := client.Put(context.Background(), "a", 1)
		if err != nil || version != 7 {
			t.Fatalf("after %v: got %d, %v", cause, version, err)
		}
		if len(script.ids) != 3 || len(script.ids[0]) != 32 || script.ids[0] != script.ids[1] || script.ids[1] != script.ids[2] {
			t.Fatalf("after %v: request ids %q, want one of 32 digits, three times", cause, script.ids)
		}
	}
}

func TestEachWriteHasItsOwnRequestIDUnlessGiven(t *testing.T) {
	script := &putScript{errors: []error{nil}}
	client, _ := connect(t, Config{}, (&fake{onPut: script.next}).start(t))
	for _, given := range [][]Option{nil, nil, {WithRequestID("mine")}} {
		if _, err := client.Put(context.Background(), "a", 1, given...); err != nil {
			t.Fatal(err)
		}
	}
	if script.ids[0] == script.ids[1] || script.ids[2] != "mine" {
		t.Fatalf("request ids %q", script.ids)
	}
}

func TestReadsAreRetried(t *testing.T) {
	for _, cause := range []error{noLeader, overloaded, outcomeUnknown, bareUnavailable} {
		server := (&fake{}).start(t)
		server.onGet = func(context.Context, *pb.GetRequest) (*pb.GetResponse, error) {
			if server.calls.Load() < 3 {
				return nil, cause
			}
			return &pb.GetResponse{Key: "a", Content: &pb.GetResponse_Value{Value: "1"}}, nil
		}
		client, _ := connect(t, Config{}, server)
		if entry, err := client.Get(context.Background(), "a"); err != nil || entry.Text != "1" {
			t.Fatalf("after %v: got %v, %v", cause, entry, err)
		}
	}
}

func TestAnswersThatCannotChangeAreNotRetried(t *testing.T) {
	cases := []struct {
		answer, sentinel error
	}{
		{refusal(codes.InvalidArgument, "LIMIT_EXCEEDED"), ErrInvalidArgument},
		{mismatch, ErrVersionMismatch},
		{refusal(codes.DataLoss, "CORRUPTION"), ErrCorruption},
		{refusal(codes.FailedPrecondition, "FAILED_PRECONDITION"), nil},
		{refusal(codes.Internal, "INTERNAL"), nil},
		{status.Error(codes.PermissionDenied, "no"), nil},
	}
	for _, c := range cases {
		script := &putScript{errors: []error{c.answer}}
		client, _ := connect(t, Config{}, (&fake{onPut: script.next}).start(t))
		_, err := client.Put(context.Background(), "a", 1)
		failure := mustBe(t, err, c.sentinel)
		if len(script.ids) != 1 {
			t.Errorf("%v was tried %d times", c.answer, len(script.ids))
		}
		if status.Code(err) != failure.Code || failure.Code != status.Code(c.answer) {
			t.Errorf("code %v of %v", failure.Code, c.answer)
		}
	}
}

func TestAnErrorTellsWhatTheServerSaid(t *testing.T) {
	client, _ := connect(t, Config{}, (&fake{onPut: (&putScript{errors: []error{refusal(codes.InvalidArgument, "LIMIT_EXCEEDED")}}).next}).start(t))
	_, err := client.Put(context.Background(), "a", 1)
	failure := mustBe(t, err, ErrInvalidArgument)
	if failure.Reason != "LIMIT_EXCEEDED" || failure.Metadata["limit"] != "1" || failure.Message != "refused by the test" {
		t.Fatalf("%+v", failure)
	}
	if want := "kvstore: INVALID_ARGUMENT LIMIT_EXCEEDED: refused by the test"; err.Error() != want {
		t.Fatalf("got %q, want %q", err, want)
	}
}

func TestWaitsAreFullJitterAndRetriesBounded(t *testing.T) {
	script := &putScript{errors: []error{noLeader}}
	client, waits := connect(t, Config{}, (&fake{onPut: script.next}).start(t))
	_, err := client.Put(context.Background(), "a", 1)
	mustBe(t, err, ErrUnavailable)
	ms := time.Millisecond
	want := fmt.Sprint([]time.Duration{50 * ms, 100 * ms, 200 * ms, 400 * ms, 800 * ms, 1600 * ms, 2000 * ms, 2000 * ms, 2000 * ms, 2000 * ms})
	if bounds, _ := waits.all(); fmt.Sprint(bounds) != want {
		t.Fatalf("bounds of the waits: %v, want %v", bounds, want)
	}
	if len(script.ids) != 11 {
		t.Fatalf("%d attempts, want 1 and 10 retries", len(script.ids))
	}
}

func TestJitterReachesBothEndsOfItsRange(t *testing.T) {
	seen := map[time.Duration]bool{}
	for range 1000 {
		wait := random(2)
		if wait < 0 || wait > 2 {
			t.Fatalf("random(2) = %d", wait)
		}
		seen[wait] = true
	}
	if len(seen) != 3 {
		t.Fatalf("random(2) gave only %v", seen)
	}
}

func TestTheServersRetryDelayIsKept(t *testing.T) {
	script := &putScript{errors: []error{refusalWithRetry(codes.ResourceExhausted, "OVERLOADED", 700*time.Millisecond), nil}}
	client, waits := connect(t, Config{}, (&fake{onPut: script.next}).start(t))
	if _, err := client.Put(context.Background(), "a", 1); err != nil {
		t.Fatal(err)
	}
	if _, slept := waits.all(); len(slept) != 1 || slept[0] != 700*time.Millisecond {
		t.Fatalf("slept %v", slept)
	}
}

func TestAWaitBeyondTheDeadlineFailsAtOnce(t *testing.T) {
	script := &putScript{errors: []error{refusalWithRetry(codes.ResourceExhausted, "OVERLOADED", time.Hour)}}
	client, waits := connect(t, Config{}, (&fake{onPut: script.next}).start(t))
	_, err := client.Put(context.Background(), "a", 1)
	mustBe(t, err, ErrOverloaded)
	if _, slept := waits.all(); len(slept) != 0 || len(script.ids) != 1 {
		t.Fatalf("slept %v, %d attempts", slept, len(script.ids))
	}
}

func TestEveryCallHasADeadline(t *testing.T) {
	var left time.Duration
	server := (&fake{onGet: func(ctx context.Context, _ *pb.GetRequest) (*pb.GetResponse, error) {
		deadline, given := ctx.Deadline()
		if !given {
			return nil, status.Error(codes.FailedPrecondition, "no deadline")
		}
		left = time.Until(deadline)
		return &pb.GetResponse{Key: "a"}, nil
	}}).start(t)
	hour, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	cases := []struct {
		ctx     context.Context
		timeout time.Duration
		want    time.Duration
	}{
		{context.Background(), 0, 5 * time.Second},
		{context.Background(), time.Minute, time.Minute},
		{hour, time.Minute, time.Hour},
	}
	for _, c := range cases {
		client, _ := connect(t, Config{Timeout: c.timeout}, server)
		if _, err := client.Get(c.ctx, "a"); err != nil {
			t.Fatal(err)
		}
		if left > c.want || left < c.want*8/10 {
			t.Errorf("the server saw %v left, want just under %v", left, c.want)
		}
	}
}

func TestTheDeadlineCoversAllRetries(t *testing.T) {
	script := &putScript{errors: []error{noLeader}}
	client, _ := connect(t, Config{Timeout: 100 * time.Millisecond}, (&fake{onPut: script.next}).start(t))
	client.random = func(bound time.Duration) time.Duration { return bound / 4 }
	client.sleep = sleep
	started := time.Now()
	_, err := client.Put(context.Background(), "a", 1)
	mustBe(t, err, ErrUnavailable)
	if took := time.Since(started); took > 5*time.Second || len(script.ids) < 2 {
		t.Fatalf("took %v, %d attempts", took, len(script.ids))
	}
}

func silent(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestASilentServerLeavesAWriteUnknownAndAReadLate(t *testing.T) {
	server := (&fake{
		onGet: func(ctx context.Context, _ *pb.GetRequest) (*pb.GetResponse, error) { return nil, silent(ctx) },
		onPut: func(ctx context.Context, _ *pb.PutRequest) (*pb.PutResponse, error) { return nil, silent(ctx) },
	}).start(t)
	client, _ := connect(t, Config{Timeout: 50 * time.Millisecond}, server)
	_, err := client.Get(context.Background(), "a")
	if failure := mustBe(t, err, nil); failure.Code != codes.DeadlineExceeded || !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("read: %+v", failure)
	}
	_, err = client.Put(context.Background(), "a", 1)
	if failure := mustBe(t, err, ErrOutcomeUnknown); failure.Code != codes.DeadlineExceeded || failure.Reason != "" {
		t.Fatalf("write: %+v", failure)
	}
}

func TestACallThatWasNeverSentHasAKnownOutcome(t *testing.T) {
	server := (&fake{onPut: (&putScript{errors: []error{nil}}).next}).start(t)
	client, _ := connect(t, Config{}, server)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := client.Put(ctx, "a", 1)
	if mustBe(t, err, nil); !errors.Is(err, context.Canceled) || server.calls.Load() != 0 {
		t.Fatalf("%v, %d calls", err, server.calls.Load())
	}
}

func TestCancellingEndsTheWait(t *testing.T) {
	script := &putScript{errors: []error{noLeader}}
	client, _ := connect(t, Config{}, (&fake{onPut: script.next}).start(t))
	ctx, cancel := context.WithCancel(context.Background())
	client.sleep = func(ctx context.Context, _ time.Duration) {
		cancel()
		sleep(ctx, time.Hour)
	}
	_, err := client.Put(ctx, "a", 1)
	mustBe(t, err, ErrUnavailable)
	if !errors.Is(err, context.Canceled) || len(script.ids) != 1 {
		t.Fatalf("%v after %d attempts", err, len(script.ids))
	}
}

func TestABareFailureOfTheTransportIsOneWhateverItIsCalled(t *testing.T) {
	for code, want := range map[codes.Code]struct {
		code codes.Code
		read error
	}{
		codes.Unavailable:       {codes.Unavailable, ErrUnavailable},
		codes.Canceled:          {codes.Unavailable, ErrUnavailable},
		codes.Unknown:           {codes.Unavailable, ErrUnavailable},
		codes.Internal:          {codes.Unavailable, ErrUnavailable},
		codes.Aborted:           {codes.Unavailable, ErrUnavailable},
		codes.ResourceExhausted: {codes.ResourceExhausted, ErrOverloaded},
		codes.DeadlineExceeded:  {codes.DeadlineExceeded, nil},
	} {
		bare := status.Error(code, "made by the transport")
		server := failing(bare)
		server.onPut = (&putScript{errors: []error{bare}}).next
		client, _ := connect(t, Config{}, server.start(t))
		_, err := client.Put(context.Background(), "a", 1)
		if failure := mustBe(t, err, ErrOutcomeUnknown); failure.Reason != "" || failure.Code != want.code {
			t.Errorf("write, %v: %+v", code, failure)
		}
		_, err = client.Get(context.Background(), "a")
		if failure := mustBe(t, err, want.read); failure.Reason != "" || failure.Code != want.code {
			t.Errorf("read, %v: %+v", code, failure)
		}
	}
}

func TestAnotherDomainsReasonIsNotTheStores(t *testing.T) {
	client, _ := connect(t, Config{}, (&fake{onPut: (&putScript{errors: []error{foreign()}}).next}).start(t))
	_, err := client.Put(context.Background(), "a", 1)
	if failure := mustBe(t, err, ErrOutcomeUnknown); failure.Reason != "" {
		t.Fatalf("%+v", failure)
	}
}

func TestAnUnknownOutcomeIsSettledOnlyByAnAnswerAboutTheRequest(t *testing.T) {
	for _, c := range []struct {
		answers  []error
		sentinel error
		attempts int
	}{
		{[]error{bareUnavailable, noLeader}, ErrOutcomeUnknown, 11},
		{[]error{outcomeUnknown, overloaded}, ErrOutcomeUnknown, 11},
		{[]error{noLeader, outcomeUnknown}, ErrOutcomeUnknown, 11},
		{[]error{bareUnavailable, refusal(codes.Unauthenticated, "UNAUTHENTICATED")}, ErrOutcomeUnknown, 2},
		{[]error{outcomeUnknown, refusal(codes.PermissionDenied, "PERMISSION_DENIED")}, ErrOutcomeUnknown, 2},
		{[]error{outcomeUnknown, refusal(codes.Internal, "INTERNAL")}, ErrOutcomeUnknown, 2},
		{[]error{outcomeUnknown, refusal(codes.DataLoss, "CORRUPTION")}, ErrOutcomeUnknown, 2},
		{[]error{outcomeUnknown, refusal(codes.DeadlineExceeded, "DEADLINE_EXCEEDED")}, ErrOutcomeUnknown, 2},
		// The store has not said these.
		{[]error{bareUnavailable, status.Error(codes.InvalidArgument, "a proxy's")}, ErrOutcomeUnknown, 2},
		{[]error{bareUnavailable, status.Error(codes.FailedPrecondition, "a proxy's")}, ErrOutcomeUnknown, 2},
		// The store has looked at the request: it answers for the first attempt, too.
		{[]error{bareUnavailable, mismatch}, ErrVersionMismatch, 2},
		{[]error{outcomeUnknown, refusal(codes.InvalidArgument, "LIMIT_EXCEEDED")}, ErrInvalidArgument, 2},
		{[]error{outcomeUnknown, refusal(codes.FailedPrecondition, "READ_ONLY")}, nil, 2},
		// All of them were certainly not applied.
		{[]error{noLeader, overloaded}, ErrOverloaded, 11},
	} {
		script := &putScript{errors: append([]error(nil), c.answers...)}
		client, _ := connect(t, Config{}, (&fake{onPut: script.next}).start(t))
		_, err := client.Put(context.Background(), "a", 1)
		mustBe(t, err, c.sentinel)
		if len(script.ids) != c.attempts || script.ids[0] != script.ids[len(script.ids)-1] {
			t.Errorf("%v: request ids %q, want one in %d attempts", c.answers, script.ids, c.attempts)
		}
	}
}

// idsOf makes a client whose writes never reach a server: their answers are the errors in turn, then success. It notes the request ids.
func idsOf(t *testing.T, answers ...error) (*Client, *[]string) {
	t.Helper()
	ids := new([]string)
	answer := func(_ context.Context, _ string, request, _ any, _ *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption) error {
		*ids = append(*ids, request.(interface{ GetRequestId() string }).GetRequestId())
		if len(*ids) > len(answers) {
			return nil
		}
		return answers[len(*ids)-1]
	}
	interceptor := grpc.WithChainUnaryInterceptor(answer)
	client, _ := connect(t, Config{Endpoints: []string{"h:1"}, WithoutRouting: true, DialOptions: []grpc.DialOption{interceptor}})
	return client, ids
}

func TestEveryKindOfWriteWhoseOutcomeIsUnknownIsRetriedWithItsRequestID(t *testing.T) {
	ctx := context.Background()
	for name, write := range map[string]func(*Client, ...Option) error{
		"put":      func(c *Client, o ...Option) error { _, err := c.Put(ctx, "a", 1, o...); return err },
		"put text": func(c *Client, o ...Option) error { _, err := c.PutText(ctx, "a", "1", o...); return err },
		"put raw":  func(c *Client, o ...Option) error { _, err := c.PutRaw(ctx, "a", nil, o...); return err },
		"delete":   func(c *Client, o ...Option) error { _, err := c.Delete(ctx, "a", o...); return err },
		"batch put": func(c *Client, o ...Option) error {
			_, err := c.BatchPut(ctx, map[string]any{"a": 1}, o...)
			return err
		},
		"batch put texts": func(c *Client, o ...Option) error {
			_, err := c.BatchPutText(ctx, map[string]string{"a": "1"}, o...)
			return err
		},
	} {
		for _, given := range [][]Option{nil, {WithRequestID("mine")}} {
			client, ids := idsOf(t, outcomeUnknown, bareUnavailable)
			if err := write(client, given...); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			want := "mine"
			if given == nil {
				want = (*ids)[0]
			}
			if want == "" || !slices.Equal(*ids, []string{want, want, want}) {
				t.Errorf("%s: request ids %q, want one, three times", name, *ids)
			}
		}
	}
}

func TestAnOutcomeThatStaysUnknownIsReportedAndTheCallersRequestIDRepeatsTheWrite(t *testing.T) {
	ctx := context.Background()
	for _, given := range [][]Option{nil, {WithRequestID("mine")}} {
		client, ids := idsOf(t, slices.Repeat([]error{outcomeUnknown}, 11)...)
		_, err := client.Put(ctx, "a", 1, given...)
		if failure := mustBe(t, err, ErrOutcomeUnknown); failure.Reason != "OUTCOME_UNKNOWN" || len(*ids) != 11 {
			t.Fatalf("%+v after %d attempts", failure, len(*ids))
		}
		if _, err := client.Put(ctx, "a", 1, given...); err != nil {
			t.Fatal(err)
		}
		// Without one of the caller's the second is another write, which the server does not take for the first.
		if repeated := (*ids)[11] == (*ids)[0]; repeated != (given != nil) {
			t.Fatalf("request ids %q", *ids)
		}
	}
}

func TestAnUnknownOutcomeTellsOfTheAttemptThatLeftItSoAndOfTheLast(t *testing.T) {
	script := &putScript{errors: []error{outcomeUnknown, refusal(codes.PermissionDenied, "PERMISSION_DENIED")}}
	client, _ := connect(t, Config{}, (&fake{onPut: script.next}).start(t))
	_, err := client.Put(context.Background(), "a", 1)
	if failure := mustBe(t, err, ErrOutcomeUnknown); failure.Code != codes.DeadlineExceeded || failure.Reason != "OUTCOME_UNKNOWN" {
		t.Fatalf("%+v", failure)
	}
	want := "kvstore: DEADLINE_EXCEEDED OUTCOME_UNKNOWN: refused by the test; then PERMISSION_DENIED PERMISSION_DENIED: refused by the test"
	if err.Error() != want {
		t.Fatalf("got %q, want %q", err, want)
	}
}

func TestInterceptorsSeeEveryAttempt(t *testing.T) {
	seen := 0
	count := func(ctx context.Context, method string, request, reply any, connection *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
		if method == pb.KvService_Put_FullMethodName { // the ring is asked for in the background
			seen++
		}
		return invoke(ctx, method, request, reply, connection, options...)
	}
	script := &putScript{errors: []error{noLeader, nil}}
	config := Config{DialOptions: []grpc.DialOption{grpc.WithChainUnaryInterceptor(count)}}
	client, _ := connect(t, config, (&fake{onPut: script.next}).start(t))
	if _, err := client.Put(context.Background(), "a", 1); err != nil || seen != 2 {
		t.Fatalf("%v, seen %d", err, seen)
	}
}
