package kvstore

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	kvstorev1 "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// Pending is the answer that an operation of a session will have.
type Pending[T any] struct {
	operation *operation
	timeout   time.Duration
	read      func(*kvstorev1.SessionResponse, error) (T, error)
}

// Wait gives the answer once it is there. Where ctx has no deadline it waits at most [Config.Timeout]; giving up leaves a write's outcome
// unknown and the session as it is. May be called again.
func (p *Pending[T]) Wait(ctx context.Context) (T, error) {
	select {
	case <-p.operation.done:
		return p.read(p.operation.answer, p.operation.err)
	default:
	}
	if _, given := ctx.Deadline(); !given {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, p.timeout)
		defer cancel()
	}
	select {
	case <-p.operation.done:
		return p.read(p.operation.answer, p.operation.err)
	case <-ctx.Done():
		return p.read(nil, failureOf(ctx, status.Error(codes.Canceled, "no answer yet: "+ctx.Err().Error()), p.operation.kind == write))
	}
}

// Done is closed when the answer is there.
func (p *Pending[T]) Done() <-chan struct{} { return p.operation.done }

// Get starts what [Client.Get] does.
func (s *Session) Get(ctx context.Context, key string, options ...Option) *Pending[*Entry] {
	request, err := get(key, options)
	started := s.start(ctx, read, &kvstorev1.SessionRequest{Operation: &kvstorev1.SessionRequest_Get{Get: request}}, err)
	return &Pending[*Entry]{started, s.timeout, func(answer *kvstorev1.SessionResponse, err error) (*Entry, error) {
		return found(answer.GetGet(), err)
	}}
}

// Put starts what [Client.Put] does.
func (s *Session) Put(ctx context.Context, key string, value any, options ...Option) *Pending[uint64] {
	request, err := putJSON(key, value, options)
	return s.put(ctx, request, err)
}

// PutText starts what [Client.PutText] does.
func (s *Session) PutText(ctx context.Context, key, text string, options ...Option) *Pending[uint64] {
	request, err := putText(key, text, options)
	return s.put(ctx, request, err)
}

// PutRaw starts what [Client.PutRaw] does. The bytes may be changed once it has returned.
func (s *Session) PutRaw(ctx context.Context, key string, raw []byte, options ...Option) *Pending[uint64] {
	request, err := putRaw(key, raw, options)
	return s.put(ctx, request, err)
}

func (s *Session) put(ctx context.Context, request *kvstorev1.PutRequest, err error) *Pending[uint64] {
	started := s.start(ctx, write, &kvstorev1.SessionRequest{Operation: &kvstorev1.SessionRequest_Put{Put: request}}, err)
	return &Pending[uint64]{started, s.timeout, func(answer *kvstorev1.SessionResponse, err error) (uint64, error) {
		return answer.GetPut().GetVersion(), err
	}}
}

// Delete starts what [Client.Delete] does.
func (s *Session) Delete(ctx context.Context, key string, options ...Option) *Pending[bool] {
	request, err := remove(key, options)
	started := s.start(ctx, write, &kvstorev1.SessionRequest{Operation: &kvstorev1.SessionRequest_Delete{Delete: request}}, err)
	return &Pending[bool]{started, s.timeout, func(answer *kvstorev1.SessionResponse, err error) (bool, error) {
		return answer.GetDelete().GetDeleted(), err
	}}
}

// BatchPut starts what [Client.BatchPut] does.
func (s *Session) BatchPut(ctx context.Context, entries map[string]any, options ...Option) *Pending[int] {
	request, err := batchPutJSON(entries, options)
	return s.batchPut(ctx, request, err)
}

// BatchPutText starts what [Client.BatchPutText] does.
func (s *Session) BatchPutText(ctx context.Context, entries map[string]string, options ...Option) *Pending[int] {
	request, err := batchPutText(entries, options)
	return s.batchPut(ctx, request, err)
}

func (s *Session) batchPut(ctx context.Context, request *kvstorev1.BatchPutRequest, err error) *Pending[int] {
	started := s.start(ctx, write, &kvstorev1.SessionRequest{Operation: &kvstorev1.SessionRequest_BatchPut{BatchPut: request}}, err)
	return &Pending[int]{started, s.timeout, func(answer *kvstorev1.SessionResponse, err error) (int, error) {
		return int(answer.GetBatchPut().GetCount()), err
	}}
}

// BatchGet starts what [Client.BatchGet] does.
func (s *Session) BatchGet(ctx context.Context, keys []string, options ...Option) *Pending[[]*Entry] {
	request, err := batchGet(keys, options)
	started := s.start(ctx, read, &kvstorev1.SessionRequest{Operation: &kvstorev1.SessionRequest_BatchGet{BatchGet: request}}, err)
	return &Pending[[]*Entry]{started, s.timeout, func(answer *kvstorev1.SessionResponse, err error) ([]*Entry, error) {
		return entriesOf(answer.GetBatchGet().GetItems()), err
	}}
}
