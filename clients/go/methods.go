package kvstore

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// method is how one kind of operation travels, in a call of its own and in a session: request Q, answer A, result R.
type method[Q, A, R any] struct {
	kind   kind
	unary  func(pb.KvServiceClient, context.Context, Q, ...grpc.CallOption) (A, error)
	wrap   func(Q) *pb.SessionRequest
	unwrap func(*pb.SessionResponse) A
	result func(A, error) (R, error)
}

// call makes a unary call; err is why the request could not be made.
func (m *method[Q, A, R]) call(ctx context.Context, c *Client, request Q, err error) (R, error) {
	var answer A
	if err == nil {
		answer, err = invoke(ctx, c, m.kind, request, m.unary)
	}
	return m.result(answer, err)
}

// start sends an operation of a session; err is why the request could not be made.
func (m *method[Q, A, R]) start(ctx context.Context, s *Session, request Q, err error) *Pending[R] {
	return &Pending[R]{s.start(ctx, m.kind, m.wrap(request), err), s.timeout, func(answer *pb.SessionResponse, err error) (R, error) {
		return m.result(m.unwrap(answer), err)
	}}
}

var (
	getMethod = method[*pb.GetRequest, *pb.GetResponse, *Entry]{
		kind:  read,
		unary: pb.KvServiceClient.Get,
		wrap: func(request *pb.GetRequest) *pb.SessionRequest {
			return &pb.SessionRequest{Operation: &pb.SessionRequest_Get{Get: request}}
		},
		unwrap: (*pb.SessionResponse).GetGet,
		result: func(answer *pb.GetResponse, err error) (*Entry, error) {
			var failure *Error
			if errors.As(err, &failure) && failure.Reason == reasonKeyNotFound {
				return nil, nil
			}
			if err != nil {
				return nil, err
			}
			return entryOf(answer), nil
		},
	}
	putMethod = method[*pb.PutRequest, *pb.PutResponse, uint64]{
		kind:  write,
		unary: pb.KvServiceClient.Put,
		wrap: func(request *pb.PutRequest) *pb.SessionRequest {
			return &pb.SessionRequest{Operation: &pb.SessionRequest_Put{Put: request}}
		},
		unwrap: (*pb.SessionResponse).GetPut,
		result: func(answer *pb.PutResponse, err error) (uint64, error) { return answer.GetVersion(), err },
	}
	deleteMethod = method[*pb.DeleteRequest, *pb.DeleteResponse, bool]{
		kind:  write,
		unary: pb.KvServiceClient.Delete,
		wrap: func(request *pb.DeleteRequest) *pb.SessionRequest {
			return &pb.SessionRequest{Operation: &pb.SessionRequest_Delete{Delete: request}}
		},
		unwrap: (*pb.SessionResponse).GetDelete,
		result: func(answer *pb.DeleteResponse, err error) (bool, error) { return answer.GetDeleted(), err },
	}
	batchPutMethod = method[*pb.BatchPutRequest, *pb.BatchPutResponse, int]{
		kind:  write,
		unary: pb.KvServiceClient.BatchPut,
		wrap: func(request *pb.BatchPutRequest) *pb.SessionRequest {
			return &pb.SessionRequest{Operation: &pb.SessionRequest_BatchPut{BatchPut: request}}
		},
		unwrap: (*pb.SessionResponse).GetBatchPut,
		result: func(answer *pb.BatchPutResponse, err error) (int, error) { return int(answer.GetCount()), err },
	}
	batchGetMethod = method[*pb.BatchGetRequest, *pb.BatchGetResponse, []*Entry]{
		kind:  read,
		unary: pb.KvServiceClient.BatchGet,
		wrap: func(request *pb.BatchGetRequest) *pb.SessionRequest {
			return &pb.SessionRequest{Operation: &pb.SessionRequest_BatchGet{BatchGet: request}}
		},
		unwrap: (*pb.SessionResponse).GetBatchGet,
		result: func(answer *pb.BatchGetResponse, err error) ([]*Entry, error) {
			if err != nil {
				return nil, err
			}
			return entriesOf(answer.GetItems()), nil
		},
	}
)
