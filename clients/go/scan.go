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

// Scan gives the entries of a range in order, over one stream of the server; leaving the loop closes it. A stream that breaks is taken up
// behind its last key, where failures may be retried; any other failure ends the loop. Where the context has no deadline, [Config.Timeout]
// bounds the wait for each entry. Ranging over the result again starts anew.
// Options: as Range without [WithPageSize].
func (c *Client) Scan(ctx context.Context, given ...Option) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		o, err := rangeOptions(callScan, given)
		if err != nil {
			yield(nil, err)
			return
		}
		ctx, watchdog := c.watch(ctx)
		defer watchdog.cancel()
		scan := scan{client: c, watchdog: watchdog, left: o.limit, request: &pb.ScanRequest{
			StartKey: o.start, EndKey: o.end, Prefix: o.prefix, Limit: o.limit, Reverse: o.reverse, KeysOnly: o.keysOnly, Consistency: o.consistency,
		}}
		for {
			message, err := scan.next(ctx)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if !yield(entryOf(message), nil) {
				return
			}
		}
	}
}

// scan is a walk over a range: over one stream, and over another one for what is left when that breaks.
type scan struct {
	client   *Client
	watchdog *watchdog
	request  *pb.ScanRequest
	last     string  // the last key that came; empty: none yet
	left     *uint64 // how many entries are to come; nil: no limit

	stream grpc.ServerStreamingClient[pb.ScanResponse] // nil: to be opened
	at     place                                       // where it comes from
}

// next waits for the next message; io.EOF: nothing is left.
func (s *scan) next(ctx context.Context) (*pb.ScanResponse, error) {
	if s.last != "" && s.left != nil && *s.left == 0 {
		return nil, io.EOF
	}
	attempts := attempts{client: s.client, until: s.watchdog.start()}
	defer s.watchdog.stop()
	for {
		if s.stream == nil {
			if err := s.client.mayBegin(ctx); err != nil {
				return nil, err
			}
		}
		message, err := s.receive(ctx)
		switch {
		case err == nil && message.GetKey() == s.last:
			// Came before the break.
		case err == nil:
			s.last = message.GetKey()
			s.left = leftAfter(s.left, 1)
			return message, nil
		case errors.Is(err, io.EOF):
			return nil, err
		default:
			s.stream = nil
			if err := attempts.failed(ctx, s.at, s.client.failureOf(ctx, err, read)); err != nil {
				return nil, err
			}
		}
	}
}

// receive takes a message from the stream, which it opens if need be.
func (s *scan) receive(ctx context.Context) (*pb.ScanResponse, error) {
	if s.stream == nil {
		s.at = s.client.endpoint()
		stream, err := s.at.service.Scan(ctx, s.rest())
		if err != nil {
			return nil, err
		}
		s.stream = stream
	}
	return s.stream.Recv()
}

// rest asks for what has not come yet. Upwards the last key comes once more: one just above it may be too long for a bound.
func (s *scan) rest() *pb.ScanRequest {
	if s.last == "" {
		return s.request
	}
	if s.request.Reverse {
		s.request.EndKey, s.request.Limit = s.last, s.left
		return s.request
	}
	s.request.StartKey = s.last
	if s.left != nil {
		limit := *s.left + 1
		s.request.Limit = &limit
	}
	return s.request
}

// watchdog ends a stream that keeps its reader waiting. A deadline would end a long stream that is well.
type watchdog struct {
	deadline time.Time   // the caller's own, which rules where it is given
	timer    *time.Timer // nil: there is such a deadline
	timeout  time.Duration
	end      context.CancelCauseFunc
}

// watch gives ctx a watchdog, or, where it has a deadline, leaves that to end the stream.
func (c *Client) watch(ctx context.Context) (context.Context, *watchdog) {
	watchdog := &watchdog{timeout: c.timeout}
	deadline, given := ctx.Deadline()
	ctx, watchdog.end = context.WithCancelCause(ctx)
	if given {
		watchdog.deadline = deadline
	} else {
		watchdog.timer = time.AfterFunc(c.timeout, func() { watchdog.end(context.DeadlineExceeded) })
	}
	return ctx, watchdog
}

// start begins a wait and tells when it ends.
func (w *watchdog) start() time.Time {
	if w.timer == nil {
		return w.deadline
	}
	w.timer.Reset(w.timeout)
	return time.Now().Add(w.timeout)
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
