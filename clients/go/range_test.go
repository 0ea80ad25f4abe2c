package kvstore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// collectAll takes a whole range.
func collectAll(entries iter.Seq2[*Entry, error]) (taken []*Entry, err error) {
	for entry, err := range entries {
		if err != nil {
			return taken, err
		}
		taken = append(taken, entry)
	}
	return taken, nil
}

func firstError(entries iter.Seq2[*Entry, error]) error {
	_, err := collectAll(entries)
	return err
}

// paged serves the keys 0 to 9 in pages of at most the asked number, else 3.
func paged(limits *[]string) *fake {
	return &fake{onRange: func(request *pb.RangeRequest) (*pb.RangeResponse, error) {
		size, at := 3, 0
		*limits = append(*limits, fmt.Sprint(request.Limit != nil, request.GetLimit()))
		if request.Limit != nil {
			size = int(request.GetLimit())
		}
		if size == 0 {
			return nil, refusal(codes.InvalidArgument, "INVALID_LIMIT")
		}
		if request.GetPageToken() != "" {
			_, _ = fmt.Sscan(request.GetPageToken(), &at)
		}
		page := &pb.RangeResponse{}
		for ; size > 0 && at < 10; size, at = size-1, at+1 {
			page.Items = append(page.Items, item(fmt.Sprint(at)))
		}
		if at < 10 {
			page.NextPageToken = fmt.Sprint(at)
		}
		return page, nil
	}}
}

func TestARangeFollowsItsPages(t *testing.T) {
	for _, c := range []struct {
		options []Option
		want    string
		limits  string
	}{
		{nil, "[0 1 2 3 4 5 6 7 8 9]", "[false 0 false 0 false 0 false 0]"},
		{[]Option{WithPageSize(5)}, "[0 1 2 3 4 5 6 7 8 9]", "[true 5 true 5]"},
		{[]Option{WithLimit(4)}, "[0 1 2 3]", "[true 4]"},
		{[]Option{WithLimit(4), WithPageSize(3)}, "[0 1 2 3]", "[true 3 true 1]"},
		{[]Option{WithLimit(3), WithPageSize(3)}, "[0 1 2]", "[true 3]"},
		{[]Option{WithLimit(100)}, "[0 1 2 3 4 5 6 7 8 9]", "[true 100]"},
		{[]Option{WithLimit(20_000)}, "[0 1 2 3 4 5 6 7 8 9]", "[false 0 false 0 false 0 false 0]"},
	} {
		var limits []string
		client, _ := connect(t, Config{}, paged(&limits).start(t))
		entries, err := collectAll(client.Range(context.Background(), c.options...))
		if err != nil || keysOf(entries) != c.want || fmt.Sprint(limits) != c.limits {
			t.Errorf("%s with limits %v, %v; want %s with %s", keysOf(entries), limits, err, c.want, c.limits)
		}
	}
}

func TestAServersLargePagesDoNotExceedTheLimit(t *testing.T) {
	client, _ := connect(t, Config{}, (&fake{onRange: func(*pb.RangeRequest) (*pb.RangeResponse, error) {
		page := &pb.RangeResponse{NextPageToken: "more"}
		for n := range 700 {
			page.Items = append(page.Items, item(fmt.Sprint(n)))
		}
		return page, nil
	}}).start(t))
	if entries, err := collectAll(client.Range(context.Background(), WithLimit(1300))); err != nil || len(entries) != 1300 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
}

func TestARangeIsLazyAndStartsAnew(t *testing.T) {
	var limits []string
	server := paged(&limits).start(t)
	client, _ := connect(t, Config{}, server)
	entries := client.Range(context.Background())
	if server.calls.Load() != 0 {
		t.Fatal("fetched before the loop")
	}
	for round := range 2 {
		taken := 0
		for range entries {
			if taken++; taken == 4 {
				break
			}
		}
		if calls := server.calls.Load(); calls != int32(2*(round+1)) {
			t.Fatalf("%d pages were fetched for 4 entries in pages of 3, round %d", calls, round)
		}
	}
}

func TestARangePageIsRetriedInTheMiddle(t *testing.T) {
	var limits []string
	server := paged(&limits)
	pages, failed := server.onRange, false
	server.onRange = func(request *pb.RangeRequest) (*pb.RangeResponse, error) {
		if request.GetPageToken() == "3" && !failed {
			failed = true
			return nil, noLeader
		}
		return pages(request)
	}
	client, _ := connect(t, Config{}, server.start(t))
	entries, err := collectAll(client.Range(context.Background()))
	if err != nil || len(entries) != 10 || !failed {
		t.Fatalf("%s, %v", keysOf(entries), err)
	}
}

func TestARangeEndsWithItsError(t *testing.T) {
	client, _ := connect(t, Config{}, paged(new([]string)).start(t))
	rounds := 0
	for entry, err := range client.Range(context.Background(), WithLimit(0)) {
		rounds++
		if mustBe(t, err, ErrInvalidArgument); entry != nil {
			t.Fatal("an entry beside the error")
		}
	}
	if rounds != 1 {
		t.Fatalf("%d rounds", rounds)
	}
}

func scanOf(keys ...string) func(*pb.ScanRequest, grpc.ServerStreamingServer[pb.ScanResponse]) error {
	return func(_ *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
		for _, key := range keys {
			if err := stream.Send(&pb.ScanResponse{Key: key, Content: &pb.ScanResponse_Value{Value: "1"}}); err != nil {
				return err
			}
		}
		return nil
	}
}

// endless sends ever higher keys, and calls between after each.
func endless(stream grpc.ServerStreamingServer[pb.ScanResponse], between func() bool) error {
	for n := 0; between(); n++ {
		if err := stream.Send(&pb.ScanResponse{Key: fmt.Sprintf("%012d", n)}); err != nil {
			return err
		}
	}
	return nil
}

func always() bool { return true }

func TestAScanGivesTheStream(t *testing.T) {
	for _, keys := range [][]string{{}, {"a"}, {"a", "b", "c"}} {
		client, _ := connect(t, Config{}, (&fake{onScan: scanOf(keys...)}).start(t))
		entries, err := collectAll(client.Scan(context.Background()))
		if err != nil || keysOf(entries) != fmt.Sprint(keys) {
			t.Fatalf("%s, %v; want %v", keysOf(entries), err, keys)
		}
	}
}

func TestLeavingTheLoopClosesTheStream(t *testing.T) {
	closed := make(chan error, 1)
	server := &fake{onScan: func(_ *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
		err := endless(stream, always)
		closed <- stream.Context().Err()
		return err
	}}
	client, _ := connect(t, Config{}, server.start(t))
	for _, err := range client.Scan(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	select {
	case err := <-closed:
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("the server's stream ended with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the server's stream is still open")
	}
}

// breaking serves streams one after the other, each with its keys and then its failure; the last one for all that follow. It notes what was
// asked for.
func breaking(asked *[]string, streams ...scripted) *fake {
	server := &fake{}
	server.onScan = func(request *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
		limit := "all"
		if request.Limit != nil {
			limit = fmt.Sprint(request.GetLimit())
		}
		*asked = append(*asked, fmt.Sprintf("[%s,%s) %s", request.GetStartKey(), request.GetEndKey(), limit))
		script := streams[min(int(server.calls.Load()), len(streams))-1]
		if err := scanOf(script.keys...)(request, stream); err != nil {
			return err
		}
		return script.failure
	}
	return server
}

type scripted struct {
	keys    []string
	failure error
}

func TestABrokenScanGoesOnBehindItsLastKey(t *testing.T) {
	keys := func(keys ...string) []string { return keys }
	for name, c := range map[string]struct {
		options []Option
		streams []scripted
		want    string
		asked   string
	}{
		"before the first entry": {
			nil, []scripted{{nil, noLeader}, {keys("a"), nil}}, "[a]", "[[,) all [,) all]",
		},
		"forward": {
			[]Option{WithStart("a"), WithEnd("z"), WithLimit(4)},
			[]scripted{{keys("a", "b"), bareUnavailable}, {keys("b", "c", "d"), nil}},
			"[a b c d]", "[[a,z) 4 [b,z) 3]",
		},
		"the last key is gone": {
			[]Option{WithLimit(4)}, []scripted{{keys("a", "b"), noLeader}, {keys("c", "d", "e"), nil}}, "[a b c d]", "[[,) 4 [b,) 3]",
		},
		"reverse": {
			[]Option{WithStart("a"), WithEnd("e"), WithLimit(4), WithReverse()},
			[]scripted{{keys("d", "c"), bareUnavailable}, {keys("b", "a"), nil}},
			"[d c b a]", "[[a,e) 4 [a,c) 2]",
		},
		"behind its last entry": {
			[]Option{WithLimit(2)}, []scripted{{keys("a", "b"), noLeader}}, "[a b]", "[[,) 2]",
		},
		"twice, once without coming further": {
			nil, []scripted{{keys("a"), noLeader}, {keys("a"), noLeader}, {keys("a", "b"), nil}}, "[a b]", "[[,) all [a,) all [a,) all]",
		},
	} {
		var asked []string
		client, _ := connect(t, Config{}, breaking(&asked, c.streams...).start(t))
		entries, err := collectAll(client.Scan(context.Background(), c.options...))
		if err != nil || keysOf(entries) != c.want || fmt.Sprint(asked) != c.asked {
			t.Errorf("%s: %s, %v, asked for %v; want %s, asked for %s", name, keysOf(entries), err, asked, c.want, c.asked)
		}
	}
}

func TestABrokenScanGoesOnAtTheNextEndpoint(t *testing.T) {
	sent := make(chan struct{})
	first := (&fake{onScan: func(request *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
		_ = scanOf("a")(request, stream)
		close(sent)
		return silent(stream.Context())
	}}).start(t)
	var asked []string
	second := breaking(&asked, scripted{[]string{"a", "b"}, nil}).start(t)
	client, _ := connect(t, Config{}, first, second)
	go func() {
		<-sent
		first.server.Stop()
	}()
	entries, err := collectAll(client.Scan(context.Background()))
	if err != nil || keysOf(entries) != "[a b]" || first.calls.Load() != 1 || second.calls.Load() != 1 {
		t.Fatalf("%s, %v; %d calls of the first, %d of the second", keysOf(entries), err, first.calls.Load(), second.calls.Load())
	}
}

func TestAScanThatComesNoFurtherGivesUp(t *testing.T) {
	var asked []string
	client, waits := connect(t, Config{}, breaking(&asked, scripted{[]string{"a"}, noLeader}).start(t))
	entries, err := collectAll(client.Scan(context.Background()))
	if mustBe(t, err, ErrUnavailable); keysOf(entries) != "[a]" || len(asked) != 11 {
		t.Fatalf("%s, %v after %d streams", keysOf(entries), err, len(asked))
	}
	if bounds, _ := waits.all(); len(bounds) != 10 || bounds[9] != 2*time.Second {
		t.Fatalf("bounds of the waits: %v", bounds)
	}
}

func TestEveryEntryGivesAScanAllRetriesAgain(t *testing.T) {
	var asked []string
	var streams []scripted
	for n := range 30 {
		streams = append(streams, scripted{[]string{fmt.Sprintf("%02d", n)}, noLeader})
	}
	client, waits := connect(t, Config{}, breaking(&asked, append(streams, scripted{})...).start(t))
	entries, err := collectAll(client.Scan(context.Background()))
	if err != nil || len(entries) != 30 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for _, bound := range waits.bounds {
		if bound != 50*time.Millisecond {
			t.Fatalf("bounds of the waits: %v", waits.bounds)
		}
	}
}

func TestAFailureThatStaysEndsAScan(t *testing.T) {
	for _, c := range []struct{ failure, want error }{
		{refusal(codes.DataLoss, "CORRUPTION"), ErrCorruption},
		{refusal(codes.InvalidArgument, "INVALID_RANGE"), ErrInvalidArgument},
		{refusal(codes.Internal, "INTERNAL"), nil},
	} {
		var asked []string
		client, _ := connect(t, Config{}, breaking(&asked, scripted{[]string{"a"}, c.failure}).start(t))
		entries, err := collectAll(client.Scan(context.Background()))
		if mustBe(t, err, c.want); keysOf(entries) != "[a]" || len(asked) != 1 {
			t.Fatalf("%s, %v after %d streams", keysOf(entries), err, len(asked))
		}
	}
}

func TestABrokenScanDoesNotWaitBeyondItsDeadline(t *testing.T) {
	late := refusalWithRetry(codes.Unavailable, "NO_LEADER", time.Hour)
	for _, timeout := range []time.Duration{0, time.Minute} {
		var asked []string
		client, waits := connect(t, Config{}, breaking(&asked, scripted{[]string{"a"}, late}).start(t))
		ctx, cancel := context.Background(), context.CancelFunc(func() {})
		if timeout > 0 {
			ctx, cancel = context.WithTimeout(ctx, timeout)
		}
		err := firstError(client.Scan(ctx))
		cancel()
		mustBe(t, err, ErrUnavailable)
		if _, slept := waits.all(); len(slept) != 0 || len(asked) != 1 {
			t.Fatalf("slept %v, %d streams", slept, len(asked))
		}
	}
}

func TestASilentScanEndsWithTheTimeout(t *testing.T) {
	for _, keys := range [][]string{{}, {"a"}} {
		server := &fake{onScan: func(request *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
			_ = scanOf(keys...)(request, stream)
			return silent(stream.Context())
		}}
		client, _ := connect(t, Config{Timeout: 100 * time.Millisecond}, server.start(t))
		entries, err := collectAll(client.Scan(context.Background()))
		if failure := mustBe(t, err, nil); failure.Code != codes.DeadlineExceeded || !errors.Is(err, context.DeadlineExceeded) || len(entries) != len(keys) {
			t.Fatalf("%s, %v", keysOf(entries), err)
		}
	}
}

func TestALongScanThatIsWellOutlivesTheTimeout(t *testing.T) {
	timeout := 300 * time.Millisecond
	server := &fake{onScan: func(_ *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
		if _, given := stream.Context().Deadline(); given {
			return refusal(codes.InvalidArgument, "the stream has a deadline")
		}
		ticks := time.NewTicker(timeout / 30)
		defer ticks.Stop()
		started := time.Now()
		return endless(stream, func() bool {
			<-ticks.C
			return time.Since(started) < 3*timeout/2
		})
	}}
	client, _ := connect(t, Config{Timeout: timeout}, server.start(t))
	if err := firstError(client.Scan(context.Background())); err != nil {
		t.Fatal(err)
	}
}

func TestTheContextsDeadlineIsThatOfTheWholeScan(t *testing.T) {
	server := &fake{onScan: func(_ *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
		return endless(stream, always)
	}}
	client, _ := connect(t, Config{}, server.start(t))
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := firstError(client.Scan(ctx)); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestTheOptionsOfRangesReachTheServer(t *testing.T) {
	var ranged *pb.RangeRequest
	var scanned *pb.ScanRequest
	client, _ := connect(t, Config{}, (&fake{
		onRange: func(request *pb.RangeRequest) (*pb.RangeResponse, error) {
			ranged = request
			return &pb.RangeResponse{}, nil
		},
		onScan: func(request *pb.ScanRequest, _ grpc.ServerStreamingServer[pb.ScanResponse]) error {
			scanned = request
			return nil
		},
	}).start(t))
	options := []Option{
		WithPrefix("p"), WithStart("pa"), WithEnd("pz"), WithLimit(3), WithReverse(), WithKeysOnly(), WithConsistency(Stale),
	}
	if err := errors.Join(firstError(client.Range(context.Background(), options...)), firstError(client.Scan(context.Background(), options...))); err != nil {
		t.Fatal(err)
	}
	prefix, limit, wide := "p", uint32(3), uint64(3)
	if want := (&pb.RangeRequest{StartKey: "pa", EndKey: "pz", Prefix: &prefix, Limit: &limit, Reverse: true, KeysOnly: true, Consistency: Stale}); !proto.Equal(ranged, want) {
		t.Errorf("range: %v, want %v", ranged, want)
	}
	if want := (&pb.ScanRequest{StartKey: "pa", EndKey: "pz", Prefix: &prefix, Limit: &wide, Reverse: true, KeysOnly: true, Consistency: Stale}); !proto.Equal(scanned, want) {
		t.Errorf("scan: %v, want %v", scanned, want)
	}
}
