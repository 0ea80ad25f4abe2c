// Package kvstore is the client of kvstore, a distributed JSON key/value store.
//
//	client, err := kvstore.New(kvstore.Config{Endpoints: []string{"http://127.0.0.1:9090"}})
//	defer client.Close()
//	version, err := client.Put(ctx, "user/1", user, kvstore.WithTTL(time.Hour))
//	entry, err := client.Get(ctx, "user/1") // nil: there is no such key
//	for entry, err := range client.Range(ctx, kvstore.WithPrefix("user/")) { ... }
//
// Every call has a deadline: the one of its context, else [Config.Timeout]. It covers all retries. A write carries a request id
// that is kept over its retries, so that it is applied once. Every failure is an [*Error]; see there.
package kvstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

const (
	defaultEndpoint = "http://127.0.0.1:9090"
	defaultTimeout  = 5 * time.Second
	keepAlive       = 20 * time.Second
	// Below the default deadline, so that an endpoint that swallows packets leaves time for the next one.
	connectTimeout = 2 * time.Second
	// A server that comes back is found within about this time.
	reconnectDelayMax = 2 * time.Second
	// Far above the pages and batches that a server gives out by default (4 MiB), as operators may raise them.
	answerBytesMax = 64 << 20
)

// Config says where the store is. The zero value is a good one.
type Config struct {
	// Endpoints are tried in turn: "http://host:port" or "host:port", or "https://host:port" where a proxy speaks TLS. None given: those
	// of the environment variable KVSTORE_ENDPOINTS (comma separated), else http://127.0.0.1:9090.
	Endpoints []string
	// Timeout is the deadline of calls whose context has none. 0 means 5 s.
	Timeout time.Duration
	// DialOptions go to every connection after the client's own: interceptors (they see every attempt of a call), credentials, ...
	DialOptions []grpc.DialOption
	// WithoutRouting sends every call to an endpoint. Otherwise operations on one key go straight to the node that leads its shard, at the
	// address that the cluster names, where that can be reached (not where an endpoint wants TLS).
	WithoutRouting bool
}

// Client reads and writes one store. Safe for use by many goroutines; make one and share it.
type Client struct {
	endpoints []endpoint
	timeout   time.Duration
	router    *router

	preferred atomic.Uint32 // index of the endpoint that the next call goes to
	closed    atomic.Bool

	// Replaced by tests.
	random func(bound time.Duration) time.Duration // uniform in [0, bound]
	sleep  func(context.Context, time.Duration)
}

type endpoint struct {
	connection *grpc.ClientConn
	service    pb.KvServiceClient
}

// New makes a client. It connects at the first call, so that it fails only for a wrong configuration.
func New(config Config) (*Client, error) {
	if config.Timeout < 0 {
		return nil, invalid(reasonInvalidOption, "the timeout is %v; it must be above 0, and 0 for %v", config.Timeout, defaultTimeout)
	}
	client := &Client{timeout: config.Timeout, random: random, sleep: sleep}
	if client.timeout == 0 {
		client.timeout = defaultTimeout
	}
	for _, address := range endpointsOf(config) {
		connection, err := dial(address, config.DialOptions)
		if err != nil {
			_ = client.Close()
			return nil, err
		}
		client.endpoints = append(client.endpoints, endpoint{connection, pb.NewKvServiceClient(connection)})
	}
	client.router = newRouter(client, config)
	return client, nil
}

// Close closes all connections. Calls and streams that are open end with [ErrClosed].
func (c *Client) Close() error {
	c.closed.Store(true)
	c.router.close()
	var failures []error
	for _, endpoint := range c.endpoints {
		if err := endpoint.connection.Close(); err != nil && !errors.Is(err, grpc.ErrClientConnClosing) {
			failures = append(failures, err)
		}
	}
	return errors.Join(failures...)
}

func endpointsOf(config Config) []string {
	if len(config.Endpoints) > 0 {
		return config.Endpoints
	}
	given := os.Getenv("KVSTORE_ENDPOINTS")
	if given == "" {
		return []string{defaultEndpoint}
	}
	endpoints := strings.Split(given, ",")
	for i, address := range endpoints {
		endpoints[i] = strings.TrimSpace(address)
	}
	return endpoints
}

func dial(address string, extra []grpc.DialOption) (*grpc.ClientConn, error) {
	target, transport := strings.TrimPrefix(address, "http://"), insecure.NewCredentials()
	if rest, found := strings.CutPrefix(address, "https://"); found {
		target, transport = rest, credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12})
	}
	target = strings.TrimSuffix(target, "/")
	host, port, err := net.SplitHostPort(target)
	number, wrong := strconv.ParseUint(port, 10, 16)
	if err != nil || host == "" || wrong != nil || number == 0 || strings.ContainsAny(target, "/?#@ ") {
		return nil, invalid(reasonInvalidEndpoint, "the endpoint %q is not http://host:port or host:port", address)
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent("kvstore-go"),
		// Retries are this package's business: a policy from DNS would multiply them.
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepAlive, Timeout: keepAlive, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: waitFirst, Multiplier: 2, Jitter: 0.2, MaxDelay: reconnectDelayMax},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(answerBytesMax)),
	}
	connection, err := grpc.NewClient(targetOf(target), append(options, extra...)...)
	if err != nil {
		return nil, fmt.Errorf("kvstore: endpoint %q: %w", address, err)
	}
	return connection, nil
}

// targetOf is what a host:port is called in gRPC.
func targetOf(address string) string {
	return "dns:///" + address
}

func random(bound time.Duration) time.Duration {
	return rand.N(bound + 1)
}

func sleep(ctx context.Context, wait time.Duration) {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
