package kvstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// A server on the loopback interface that answers as the test says.
type fake struct {
	pb.UnimplementedKvServiceServer
	onGet     func(context.Context, *pb.GetRequest) (*pb.GetResponse, error)
	onPut     func(context.Context, *pb.PutRequest) (*pb.PutResponse, error)
	onRange   func(*pb.RangeRequest) (*pb.RangeResponse, error)
	onScan    func(*pb.ScanRequest, grpc.ServerStreamingServer[pb.ScanResponse]) error
	onSession func(grpc.BidiStreamingServer[pb.SessionRequest, pb.SessionResponse]) error
	onRing    func(context.Context) (*pb.GetRingResponse, error) // nil: UNIMPLEMENTED, as an older server

	calls   atomic.Int32 // without questions for the ring
	rings   atomic.Int32 // those
	health  *health.Server
	address string
	server  *grpc.Server
}

func (f *fake) GetRing(ctx context.Context, request *pb.GetRingRequest) (*pb.GetRingResponse, error) {
	f.rings.Add(1)
	if f.onRing == nil {
		return f.UnimplementedKvServiceServer.GetRing(ctx, request)
	}
	return f.onRing(ctx)
}

func (f *fake) Get(ctx context.Context, request *pb.GetRequest) (*pb.GetResponse, error) {
	f.calls.Add(1)
	return f.onGet(ctx, request)
}

func (f *fake) Put(ctx context.Context, request *pb.PutRequest) (*pb.PutResponse, error) {
	f.calls.Add(1)
	return f.onPut(ctx, request)
}

func (f *fake) Range(_ context.Context, request *pb.RangeRequest) (*pb.RangeResponse, error) {
	f.calls.Add(1)
	return f.onRange(request)
}

func (f *fake) Scan(request *pb.ScanRequest, stream grpc.ServerStreamingServer[pb.ScanResponse]) error {
	f.calls.Add(1)
	return f.onScan(request, stream)
}

func (f *fake) Session(stream grpc.BidiStreamingServer[pb.SessionRequest, pb.SessionResponse]) error {
	f.calls.Add(1)
	return f.onSession(stream)
}

func (f *fake) start(t *testing.T) *fake {
	t.Helper()
	return f.startAt(t, "127.0.0.1:0")
}

func (f *fake) startAt(t *testing.T, address string) *fake {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	f.address, f.server = listener.Addr().String(), grpc.NewServer()
	f.health = health.NewServer()
	pb.RegisterKvServiceServer(f.server, f)
	healthpb.RegisterHealthServer(f.server, f.health)
	go func() { _ = f.server.Serve(listener) }()
	t.Cleanup(f.server.Stop)
	return f
}

// unusedAddress is one where nobody listens.
func unusedAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// waits are those of a client, which does not wait but notes how long it would, always the longest that jitter allows.
type waits struct {
	mutex  sync.Mutex
	bounds []time.Duration
	slept  []time.Duration
}

func (w *waits) all() (bounds, slept []time.Duration) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	return append([]time.Duration(nil), w.bounds...), append([]time.Duration(nil), w.slept...)
}

// connect makes a client whose waits take no time.
func connect(t *testing.T, config Config, servers ...*fake) (*Client, *waits) {
	t.Helper()
	for _, server := range servers {
		config.Endpoints = append(config.Endpoints, server.address)
	}
	client, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	waits := &waits{}
	client.random = func(bound time.Duration) time.Duration {
		waits.mutex.Lock()
		defer waits.mutex.Unlock()
		waits.bounds = append(waits.bounds, bound)
		return 0
	}
	client.sleep = func(_ context.Context, wait time.Duration) {
		waits.mutex.Lock()
		defer waits.mutex.Unlock()
		waits.slept = append(waits.slept, wait)
	}
	return client, waits
}

// refusal is an error as the store sends it.
func refusal(code codes.Code, reason string) error {
	detailed, err := status.New(code, "refused by the test").WithDetails(
		&errdetails.ErrorInfo{Domain: "kvstore", Reason: reason, Metadata: map[string]string{"limit": "1"}},
	)
	if err != nil {
		panic(err)
	}
	return detailed.Err()
}

func refusalWithRetry(code codes.Code, reason string, after time.Duration) error {
	detailed, err := status.New(code, "refused by the test").WithDetails(
		&errdetails.ErrorInfo{Domain: "kvstore", Reason: reason}, &errdetails.RetryInfo{RetryDelay: durationpb.New(after)},
	)
	if err != nil {
		panic(err)
	}
	return detailed.Err()
}

var sentinels = []error{ErrInvalidArgument, ErrVersionMismatch, ErrOverloaded, ErrUnavailable, ErrOutcomeUnknown, ErrCorruption, ErrClosed}

// mustBe checks that err is an *Error that matches want and no other sentinel; nil: none at all.
func mustBe(t *testing.T, err, want error) *Error {
	t.Helper()
	var failure *Error
	if !errors.As(err, &failure) {
		t.Fatalf("got %v (%T), want an *Error", err, err)
	}
	var matched []string
	for _, sentinel := range sentinels {
		if errors.Is(err, sentinel) {
			matched = append(matched, sentinel.Error())
		}
	}
	expected := ""
	if want != nil {
		expected = want.Error()
	}
	if strings.Join(matched, ", ") != expected {
		t.Fatalf("%v matches [%s], want [%s]", err, strings.Join(matched, ", "), expected)
	}
	return failure
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// item is an entry of a fake's range.
func item(key string) *pb.Item {
	return &pb.Item{Key: key, Version: 1, Content: &pb.Item_Value{Value: "1"}}
}

func keysOf(entries []*Entry) string {
	var keys []string
	for _, entry := range entries {
		keys = append(keys, entry.Key)
	}
	return fmt.Sprint(keys)
}

// foreign is an error with the ErrorInfo of something between client and store.
func foreign() error {
	detailed, err := status.New(codes.Unavailable, "upstream").WithDetails(&errdetails.ErrorInfo{Domain: "proxy.example", Reason: "UPSTREAM"})
	if err != nil {
		panic(err)
	}
	return detailed.Err()
}
