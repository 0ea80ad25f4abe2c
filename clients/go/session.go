package kvstore

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// Where more operations in flight brought no more speed.
const defaultWindow = 512

// Session pipelines operations over one stream: each is sent at once and answered later, many in flight at a time. An operation costs a
// small part of a call of its own. Operations on one key take effect in the order in which they were started.
//
// A failed operation fails alone. Nothing is retried, as that would break the order. When the stream breaks, everything
// without an answer fails: reads as unavailable, writes with [ErrOutcomeUnknown] unless the server said that they were not
// started. Then open a new session.
//
// Safe for use by many goroutines.
type Session struct {
	stream  sessionStream
	cancel  context.CancelFunc
	timeout time.Duration
	window  chan struct{} // one token for each operation in flight

	sending sync.Mutex // order of ids on the stream; guards halfClosed
	// No operation may be sent any more.
	halfClosed bool

	mutex    sync.Mutex // guards what follows; taken inside of sending, never the other way round
	inFlight map[uint64]*operation
	lastID   uint64
	failure  error // why the stream ended; set before ended is closed

	ended chan struct{}
}

type sessionStream = grpc.BidiStreamingClient[pb.SessionRequest, pb.SessionResponse]

// operation is one that was started.
type operation struct {
	kind   kind
	done   chan struct{} // closed when answer and err are set
	answer *pb.SessionResponse
	err    error
}

// Session opens a stream for pipelined operations. ctx bounds its whole life; opening is retried like a call. Close it.
// Options: [WithWindow].
func (c *Client) Session(ctx context.Context, given ...Option) (*Session, error) {
	o, err := collect(callSession, given)
	if err != nil {
		return nil, err
	}
	ctx, watchdog := c.watch(ctx)
	until := watchdog.start()
	defer watchdog.stop()
	var stream sessionStream
	err = c.retry(ctx, until, read, nil, func(service pb.KvServiceClient) (err error) {
		if stream, err = service.Session(ctx); err != nil {
			return err
		}
		// Only the answer's head tells that the server has taken the stream.
		if head, err := stream.Header(); err != nil || head != nil {
			return err
		}
		if _, err = stream.Recv(); errors.Is(err, io.EOF) {
			return status.Error(codes.Unavailable, "the server has closed the session at once")
		}
		return err
	})
	if err != nil {
		watchdog.cancel()
		return nil, err
	}
	session := &Session{
		stream: stream, cancel: watchdog.cancel, timeout: c.timeout, window: make(chan struct{}, o.window),
		inFlight: make(map[uint64]*operation), ended: make(chan struct{}),
	}
	go session.receive(ctx, c)
	return session, nil
}

// Close sends no more operations, waits until all that were started are answered, at most as long as a call may take, and closes the stream.
// The error is why the stream did not end well.
func (s *Session) Close() error {
	s.sending.Lock()
	if !s.halfClosed {
		s.halfClosed = true
		_ = s.stream.CloseSend() // always nil
	}
	s.sending.Unlock()
	timer := time.NewTimer(s.timeout)
	defer timer.Stop()
	select {
	case <-s.ended:
	case <-timer.C:
	}
	s.cancel()
	<-s.ended
	if errors.Is(s.failure, ErrClosed) {
		return nil
	}
	return s.failure
}

// start sends an operation; blocks while the window is full.
func (s *Session) start(ctx context.Context, kind kind, request *pb.SessionRequest, err error) *operation {
	started := &operation{kind: kind, done: make(chan struct{})}
	if err != nil {
		return started.finish(nil, err)
	}
	select {
	case s.window <- struct{}{}:
	case <-s.ended:
		return started.finish(nil, s.failure)
	case <-ctx.Done():
		return started.finish(nil, notSent(endOf(ctx)))
	}
	s.sending.Lock()
	defer s.sending.Unlock()
	if s.halfClosed {
		<-s.window
		return started.finish(nil, closed("the session"))
	}
	if err := s.register(request, started); err != nil {
		<-s.window
		return started.finish(nil, err)
	}
	// A failure here has ended the stream; receive learns why and fails this operation with all others.
	_ = s.stream.Send(request)
	return started
}

// register gives an operation the id by which its answer is known.
func (s *Session) register(request *pb.SessionRequest, started *operation) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.failure != nil {
		return s.failure
	}
	s.lastID++
	request.Id = s.lastID
	s.inFlight[request.Id] = started
	return nil
}

// receive hands out answers until the stream ends. It never waits for whoever wants them, so that the server never waits for this side.
func (s *Session) receive(ctx context.Context, c *Client) {
	for {
		answer, err := s.stream.Recv()
		if err == nil {
			err = s.hand(answer)
		}
		if err != nil {
			s.end(ctx, c, err)
			return
		}
	}
}

// hand gives an answer to its operation.
func (s *Session) hand(answer *pb.SessionResponse) error {
	s.mutex.Lock()
	started := s.inFlight[answer.GetId()]
	delete(s.inFlight, answer.GetId())
	s.mutex.Unlock()
	if started == nil {
		return status.Errorf(codes.Internal, "the server answered the operation %d, which is not in flight", answer.GetId())
	}
	if refused := answer.GetStatus(); refused != nil {
		started.finish(nil, fromStatus(status.FromProto(refused), started.kind))
	} else {
		started.finish(answer, nil)
	}
	<-s.window
	return nil
}

// end fails everything that has no answer.
func (s *Session) end(ctx context.Context, c *Client, err error) {
	orderly := errors.Is(err, io.EOF)
	if orderly {
		err = status.Error(codes.Unavailable, "the stream ended before the answer")
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for id, started := range s.inFlight {
		started.finish(nil, c.failureOf(ctx, err, started.kind))
		delete(s.inFlight, id)
	}
	s.failure = c.failureOf(ctx, err, read)
	if orderly {
		s.failure = closed("the session")
	}
	s.cancel()
	close(s.ended)
}

func (o *operation) finish(answer *pb.SessionResponse, err error) *operation {
	o.answer, o.err = answer, err
	close(o.done)
	return o
}

// Pending is the answer that an operation of a session will have.
type Pending[R any] struct {
	operation *operation
	timeout   time.Duration
	result    func(*pb.SessionResponse, error) (R, error)
}

// Done is closed when the answer is there.
func (p *Pending[R]) Done() <-chan struct{} { return p.operation.done }

// Wait gives the answer once it is there. Where ctx has no deadline it waits at most [Config.Timeout]; giving up leaves a write's outcome
// unknown and the session as it is. May be called again.
func (p *Pending[R]) Wait(ctx context.Context) (R, error) {
	select {
	case <-p.operation.done:
		return p.result(p.operation.answer, p.operation.err)
	default:
	}
	ctx, cancel := deadline(ctx, p.timeout)
	defer cancel()
	select {
	case <-p.operation.done:
		return p.result(p.operation.answer, p.operation.err)
	case <-ctx.Done():
		failure := fromStatus(status.New(codes.Canceled, "no answer yet"), p.operation.kind)
		failure.endedBy(endOf(ctx))
		return p.result(nil, failure)
	}
}
