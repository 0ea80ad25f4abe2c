package kvstore

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"

	"google.golang.org/grpc"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// Scan gives the entries of a range in order, over one stream of the server; leaving the loop closes it. Where the context has no
// deadline, [Config.Timeout] bounds the wait for each entry. Until the first entry failures are retried; a later one ends the loop,
// where Range would go on. Ranging over the result again starts anew.
// Options: as Range without [WithPageSize].
func (c *Client) Scan(ctx context.Context, given ...Option) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		o, err := rangeOptions(callScan, given)
		if err != nil {
			yield(nil, err)
			return
		}
		request := &pb.ScanRequest{
			StartKey: o.start, EndKey: o.end, Prefix: o.prefix, Limit: o.limit, Reverse: o.reverse, KeysOnly: o.keysOnly, Consistency: o.consistency,
		}
		ctx, watchdog := c.watch(ctx)
		defer watchdog.cancel()
		stream, message, err := c.openScan(ctx, watchdog, request)
		for err == nil {
			if !yield(entryOf(message), nil) {
				return
			}
			if message, err = receive(watchdog, stream); err != nil && !errors.Is(err, io.EOF) {
				err = c.broken(ctx, err, read)
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(nil, err)
		}
	}
}

type scanStream = grpc.ServerStreamingClient[pb.ScanResponse]

// openScan begins a scan and waits for its first message, as only that tells whether the server takes the request. io.EOF: nothing is
// in the range.
func (c *Client) openScan(ctx context.Context, watchdog *watchdog, request *pb.ScanRequest) (stream scanStream, first *pb.ScanResponse, err error) {
	defer watchdog.stop()
	empty := false
	err = c.retry(ctx, read, func(service pb.KvServiceClient) (err error) {
		if stream, err = service.Scan(ctx, request); err != nil {
			return err
		}
		if first, err = stream.Recv(); errors.Is(err, io.EOF) {
			empty, err = true, nil
		}
		return err
	})
	if empty {
		return nil, nil, io.EOF
	}
	return stream, first, err
}

func receive(watchdog *watchdog, stream scanStream) (*pb.ScanResponse, error) {
	watchdog.start()
	defer watchdog.stop()
	return stream.Recv()
}

// watchdog ends a stream that keeps its reader waiting. A deadline would end a long stream that is well.
type watchdog struct {
	timer   *time.Timer // nil: the caller's own deadline rules
	timeout time.Duration
	end     context.CancelCauseFunc
}

// watch gives ctx a watchdog, or, where it has a deadline, leaves that to end the stream. The watchdog runs already.
func (c *Client) watch(ctx context.Context) (context.Context, *watchdog) {
	_, given := ctx.Deadline()
	ctx, end := context.WithCancelCause(ctx)
	watchdog := &watchdog{timeout: c.timeout, end: end}
	if !given {
		watchdog.timer = time.AfterFunc(c.timeout, func() { end(context.DeadlineExceeded) })
	}
	return ctx, watchdog
}

func (w *watchdog) start() {
	if w.timer != nil {
		w.timer.Reset(w.timeout)
	}
}

func (w *watchdog) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

func (w *watchdog) cancel() {
	w.stop()
	w.end(nil)
}
