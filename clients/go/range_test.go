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
		{[]Option{WithLimit(20_000)}, "[0 1 2 3 4 5 6 7 8 9]", "[true 1000]"},
	} {
		var limits []string
		client, _ := connect(t, Config{}, paged(&limits).start(t))
		entries, err := collectAll(client.Range(context.Background(), c.options...))
		if err != nil || keysOf(entries) != c.want || fmt.Sprint(limits) != c.limits {
			t.Errorf("%s with limits %v, %v; want %s with %s", keysOf(entries), limits, err, c.want, c.limits)
		}
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
	server := &fake{onScan: func(request *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
		for {
			if err := scanOf("a")(request, stream); err != nil {
				closed <- stream.Context().Err()
				return err
			}
		}
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

func TestAScanIsRetriedUntilItsFirstEntry(t *testing.T) {
	server := &fake{}
	server.onScan = func(request *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
		switch server.calls.Load() {
		case 1:
			return noLeader
		case 2:
			_ = scanOf("a")(request, stream)
			return noLeader
		}
		return errors.New("opened again after the first entry")
	}
	client, _ := connect(t, Config{}, server.start(t))
	entries, err := collectAll(client.Scan(context.Background()))
	if mustBe(t, err, ErrUnavailable); keysOf(entries) != "[a]" {
		t.Fatalf("%s, %v", keysOf(entries), err)
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
	server := &fake{onScan: func(request *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
		if _, given := stream.Context().Deadline(); given {
			return refusal(codes.InvalidArgument, "the stream has a deadline")
		}
		ticks := time.NewTicker(timeout / 30)
		defer ticks.Stop()
		for started := time.Now(); time.Since(started) < 3*timeout/2; <-ticks.C {
			if err := scanOf("a")(request, stream); err != nil {
				return err
			}
		}
		return nil
	}}
	client, _ := connect(t, Config{Timeout: timeout}, server.start(t))
	if err := firstError(client.Scan(context.Background())); err != nil {
		t.Fatal(err)
	}
}

func TestTheContextsDeadlineIsThatOfTheWholeScan(t *testing.T) {
	server := &fake{onScan: func(request *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
		for {
			if err := scanOf("a")(request, stream); err != nil {
				return err
			}
		}
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
