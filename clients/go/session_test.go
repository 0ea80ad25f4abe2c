package kvstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

type sessionServer = grpc.BidiStreamingServer[pb.SessionRequest, pb.SessionResponse]

// serveSession answers each operation by itself, with the head of the answer sent at once as the store does.
func serveSession(answer func(*pb.SessionRequest) *pb.SessionResponse) func(sessionServer) error {
	return func(stream sessionServer) error {
		_ = stream.SendHeader(nil)
		for {
			request, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if err := stream.Send(answer(request)); err != nil {
				return err
			}
		}
	}
}

func echo(request *pb.SessionRequest) *pb.SessionResponse {
	answer := &pb.SessionResponse{Id: request.GetId()}
	switch operation := request.GetOperation().(type) {
	case *pb.SessionRequest_Get:
		answer.Result = &pb.SessionResponse_Get{Get: &pb.GetResponse{Key: operation.Get.GetKey(), Content: &pb.GetResponse_Value{Value: "1"}}}
	case *pb.SessionRequest_Put:
		answer.Result = &pb.SessionResponse_Put{Put: &pb.PutResponse{Version: request.GetId()}}
	case *pb.SessionRequest_Delete:
		answer.Result = &pb.SessionResponse_Delete{Delete: &pb.DeleteResponse{Deleted: true}}
	case *pb.SessionRequest_BatchPut:
		answer.Result = &pb.SessionResponse_BatchPut{BatchPut: &pb.BatchPutResponse{Count: uint32(len(operation.BatchPut.GetEntries()))}}
	case *pb.SessionRequest_BatchGet:
		answer.Result = &pb.SessionResponse_BatchGet{BatchGet: &pb.BatchGetResponse{Items: []*pb.Item{item("a")}}}
	}
	return answer
}

func refusedAnswer(request *pb.SessionRequest, err error) *pb.SessionResponse {
	return &pb.SessionResponse{Id: request.GetId(), Result: &pb.SessionResponse_Status{Status: status.Convert(err).Proto()}}
}

func openSession(t *testing.T, server *fake, options ...Option) *Session {
	t.Helper()
	client, _ := connect(t, Config{}, server.start(t))
	session, err := client.Session(context.Background(), options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	return session
}

func TestASessionDoesEveryOperation(t *testing.T) {
	session := openSession(t, &fake{onSession: serveSession(echo)})
	ctx := context.Background()
	put, text, raw := session.Put(ctx, "a", 1), session.PutText(ctx, "a", "1"), session.PutRaw(ctx, "a", []byte{1})
	get, remove := session.Get(ctx, "a"), session.Delete(ctx, "a")
	batch, texts := session.BatchPut(ctx, map[string]any{"a": 1, "b": 2}), session.BatchPutText(ctx, map[string]string{"a": "1"})
	items := session.BatchGet(ctx, []string{"a"})
	for i, pending := range []*Pending[uint64]{put, text, raw} {
		if version, err := pending.Wait(ctx); err != nil || version != uint64(i+1) {
			t.Errorf("put %d: %d, %v", i, version, err)
		}
	}
	if entry, err := get.Wait(ctx); err != nil || entry.Key != "a" || entry.Text != "1" {
		t.Errorf("get: %v, %v", entry, err)
	}
	if deleted, err := remove.Wait(ctx); err != nil || !deleted {
		t.Errorf("delete: %v, %v", deleted, err)
	}
	if count, err := batch.Wait(ctx); err != nil || count != 2 {
		t.Errorf("batch put: %d, %v", count, err)
	}
	if count, err := texts.Wait(ctx); err != nil || count != 1 {
		t.Errorf("batch put of texts: %d, %v", count, err)
	}
	if entries, err := items.Wait(ctx); err != nil || keysOf(entries) != "[a]" {
		t.Errorf("batch get: %v, %v", entries, err)
	}
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAnswersMayComeInAnyOrder(t *testing.T) {
	const operations = 10
	server := &fake{onSession: func(stream sessionServer) error {
		_ = stream.SendHeader(nil)
		var requests []*pb.SessionRequest
		for range operations {
			request, err := stream.Recv()
			if err != nil {
				return err
			}
			requests = append(requests, request)
		}
		for i := range requests {
			if err := stream.Send(echo(requests[operations-1-i])); err != nil {
				return err
			}
		}
		_, _ = stream.Recv()
		return nil
	}}
	session := openSession(t, server)
	var pending []*Pending[*Entry]
	for i := range operations {
		pending = append(pending, session.Get(context.Background(), fmt.Sprint(i)))
	}
	for i, p := range pending {
		if entry, err := p.Wait(context.Background()); err != nil || entry.Key != fmt.Sprint(i) {
			t.Errorf("%d: %v, %v", i, entry, err)
		}
	}
}

func TestOperationsAreSentInTheOrderInWhichTheyWereStarted(t *testing.T) {
	var keys []string
	session := openSession(t, &fake{onSession: serveSession(func(request *pb.SessionRequest) *pb.SessionResponse {
		keys = append(keys, request.GetPut().GetKey())
		return echo(request)
	})}, WithWindow(3))
	want := []string{}
	for i := range 100 {
		want = append(want, fmt.Sprint(i))
		session.Put(context.Background(), fmt.Sprint(i), i)
	}
	if err := session.Close(); err != nil || fmt.Sprint(keys) != fmt.Sprint(want) {
		t.Fatalf("%v, %v", keys, err)
	}
}

func TestTheWindowHoldsTheSenderBack(t *testing.T) {
	var received atomic.Int32
	release := make(chan struct{})
	session := openSession(t, &fake{onSession: func(stream sessionServer) error {
		_ = stream.SendHeader(nil)
		answers := sync.Mutex{}
		for {
			request, err := stream.Recv()
			if err != nil {
				return nil
			}
			received.Add(1)
			go func() {
				<-release
				answers.Lock()
				defer answers.Unlock()
				_ = stream.Send(echo(request))
			}()
		}
	}}, WithWindow(2))
	first, second := session.Get(context.Background(), "1"), session.Get(context.Background(), "2")
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := session.Put(short, "3", 1).Wait(context.Background())
	if mustBe(t, err, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("the third operation: %v", err)
	}
	eventually(t, "two operations arrive", func() bool { return received.Load() == 2 })
	close(release)
	for _, pending := range []*Pending[*Entry]{first, second, session.Get(context.Background(), "4")} {
		if _, err := pending.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	if received.Load() != 3 {
		t.Fatalf("%d operations arrived; the one that gave up must not", received.Load())
	}
}

func TestAFailedOperationFailsAlone(t *testing.T) {
	session := openSession(t, &fake{onSession: serveSession(func(request *pb.SessionRequest) *pb.SessionResponse {
		switch request.GetGet().GetKey() + request.GetPut().GetKey() {
		case "missing":
			return refusedAnswer(request, refusal(codes.NotFound, "KEY_NOT_FOUND"))
		case "mismatch":
			return refusedAnswer(request, mismatch)
		case "unknown":
			return refusedAnswer(request, outcomeUnknown)
		}
		return echo(request)
	})})
	ctx := context.Background()
	missing, refused, unknown, well := session.Get(ctx, "missing"), session.Put(ctx, "mismatch", 1, WithIfVersion(1)), session.Put(ctx, "unknown", 1), session.Get(ctx, "well")
	invalid := session.Get(ctx, "\xff")
	if entry, err := missing.Wait(ctx); entry != nil || err != nil {
		t.Errorf("missing: %v, %v", entry, err)
	}
	_, err := refused.Wait(ctx)
	mustBe(t, err, ErrVersionMismatch)
	_, err = unknown.Wait(ctx)
	mustBe(t, err, ErrOutcomeUnknown)
	_, err = invalid.Wait(ctx)
	mustBe(t, err, ErrInvalidArgument)
	if entry, err := well.Wait(ctx); err != nil || entry.Key != "well" {
		t.Errorf("well: %v, %v", entry, err)
	}
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAnUnknownOutcomeInASessionIsReportedAndNotRetriedAndItsRequestIDRepeatsIt(t *testing.T) {
	var ids []string
	session := openSession(t, &fake{onSession: serveSession(func(request *pb.SessionRequest) *pb.SessionResponse {
		if ids = append(ids, request.GetPut().GetRequestId()); len(ids) == 1 {
			return refusedAnswer(request, outcomeUnknown)
		}
		return echo(request)
	})})
	ctx := context.Background()
	_, err := session.Put(ctx, "a", 1, WithRequestID("mine")).Wait(ctx)
	mustBe(t, err, ErrOutcomeUnknown)
	if _, err := session.Put(ctx, "a", 1, WithRequestID("mine")).Wait(ctx); err != nil {
		t.Fatal(err)
	}
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(ids, []string{"mine", "mine"}) {
		t.Fatalf("request ids %q, want one for each of two calls", ids)
	}
}

// breakAfter takes a number of operations and ends the stream without an answer.
func breakAfter(operations int, err error) func(sessionServer) error {
	return func(stream sessionServer) error {
		_ = stream.SendHeader(nil)
		for range operations {
			if _, err := stream.Recv(); err != nil {
				return err
			}
		}
		return err
	}
}

func TestABrokenStreamFailsWhatHasNoAnswer(t *testing.T) {
	for _, c := range []struct {
		end         error
		read, write error
	}{
		{bareUnavailable, ErrUnavailable, ErrOutcomeUnknown},
		{nil, ErrUnavailable, ErrOutcomeUnknown},
		// The server's own word that what it has not answered was not started.
		{refusal(codes.Unavailable, "NOT_SERVING"), ErrUnavailable, ErrUnavailable},
	} {
		session := openSession(t, &fake{onSession: breakAfter(2, c.end)})
		get, put := session.Get(context.Background(), "a"), session.Put(context.Background(), "a", 1)
		_, err := get.Wait(context.Background())
		mustBe(t, err, c.read)
		_, err = put.Wait(context.Background())
		mustBe(t, err, c.write)
		<-session.ended
		late := session.Put(context.Background(), "a", 1)
		if _, err := late.Wait(context.Background()); err == nil || errors.Is(err, ErrOutcomeUnknown) {
			t.Errorf("after %v: %v; a write that was not sent has a known outcome", c.end, err)
		}
	}
}

func TestAnAnswerToNothingEndsTheSession(t *testing.T) {
	session := openSession(t, &fake{onSession: serveSession(func(*pb.SessionRequest) *pb.SessionResponse { return &pb.SessionResponse{Id: 99} })})
	_, err := session.Put(context.Background(), "a", 1).Wait(context.Background())
	mustBe(t, err, ErrOutcomeUnknown)
	if err := session.Close(); err == nil {
		t.Fatal("closed as if all were well")
	}
}

func TestCloseWaitsForTheAnswersAndTakesNoMore(t *testing.T) {
	session := openSession(t, &fake{onSession: serveSession(echo)})
	var pending []*Pending[uint64]
	for i := range 200 {
		pending = append(pending, session.Put(context.Background(), "a", i))
	}
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}
	for _, p := range pending {
		select {
		case <-p.Done():
		default:
			t.Fatal("an operation has no answer after Close")
		}
		if _, err := p.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	_, err := session.Put(context.Background(), "a", 1).Wait(context.Background())
	mustBe(t, err, ErrClosed)
	if err := session.Close(); err != nil {
		t.Fatalf("closing again: %v", err)
	}
}

func TestCloseDoesNotWaitForEver(t *testing.T) {
	server := (&fake{onSession: func(stream sessionServer) error {
		_ = stream.SendHeader(nil)
		return silent(stream.Context())
	}}).start(t)
	client, _ := connect(t, Config{Timeout: 100 * time.Millisecond}, server)
	session, err := client.Session(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	put := session.Put(context.Background(), "a", 1)
	if err := session.Close(); err == nil {
		t.Fatal("closed as if all were well")
	}
	_, err = put.Wait(context.Background())
	mustBe(t, err, ErrOutcomeUnknown)
}

func TestGivingUpAnAnswerLeavesTheSession(t *testing.T) {
	release := make(chan struct{})
	session := openSession(t, &fake{onSession: serveSession(func(request *pb.SessionRequest) *pb.SessionResponse {
		<-release
		return echo(request)
	})})
	put := session.Put(context.Background(), "a", 1)
	short, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := put.Wait(short)
	if mustBe(t, err, ErrOutcomeUnknown); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	close(release)
	if version, err := put.Wait(context.Background()); err != nil || version != 1 {
		t.Fatalf("%d, %v", version, err)
	}
}

func TestOpeningASessionFailsOver(t *testing.T) {
	sick := (&fake{onSession: func(sessionServer) error { return noLeader }}).start(t)
	well := (&fake{onSession: serveSession(echo)}).start(t)
	client, _ := connect(t, Config{Endpoints: []string{unusedAddress(t)}}, sick, well)
	session, err := client.Session(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	if _, err := session.Get(context.Background(), "a").Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestOpeningASessionHasADeadlineThatItsLifeHasNot(t *testing.T) {
	t.Parallel()
	var deaf atomic.Bool
	deaf.Store(true)
	server := (&fake{onSession: func(stream sessionServer) error {
		if deaf.Load() {
			return silent(stream.Context())
		}
		return serveSession(echo)(stream)
	}}).start(t)
	timeout := 500 * time.Millisecond
	client, _ := connect(t, Config{Timeout: timeout}, server)
	_, err := client.Session(context.Background())
	if mustBe(t, err, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	deaf.Store(false)
	session, err := client.Session(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for started := time.Now(); time.Since(started) < 3*timeout; {
		if _, err := session.Get(context.Background(), "a").Wait(context.Background()); err != nil {
			t.Fatalf("after %v: %v", time.Since(started), err)
		}
	}
	if err := session.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestASessionEndsWithItsContext(t *testing.T) {
	client, _ := connect(t, Config{}, (&fake{onSession: breakAfter(2, nil)}).start(t))
	ctx, cancel := context.WithCancel(context.Background())
	session, err := client.Session(ctx)
	if err != nil {
		t.Fatal(err)
	}
	put := session.Put(context.Background(), "a", 1)
	cancel()
	_, err = put.Wait(context.Background())
	if mustBe(t, err, ErrOutcomeUnknown); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestASessionServesManyGoroutines(t *testing.T) {
	last := uint64(0)
	session := openSession(t, &fake{onSession: serveSession(func(request *pb.SessionRequest) *pb.SessionResponse {
		if request.GetId() != last+1 {
			t.Errorf("the operation %d came after %d", request.GetId(), last)
		}
		last = request.GetId()
		return echo(request)
	})}, WithWindow(16))
	var group sync.WaitGroup
	for worker := range 8 {
		group.Add(1)
		go func() {
			defer group.Done()
			for i := range 200 {
				key := fmt.Sprint(worker, "/", i)
				if entry, err := session.Get(context.Background(), key).Wait(context.Background()); err != nil || entry.Key != key {
					t.Errorf("%s: %v, %v", key, entry, err)
					return
				}
			}
		}()
	}
	group.Wait()
}
