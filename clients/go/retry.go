package kvstore

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

const (
	retriesMax = 10
	waitUnit   = 50 * time.Millisecond
	waitMax    = 2 * time.Second
)

// kind tells what a failure without an answer means.
type kind bool

const (
	read  kind = false
	write kind = true
)

// invoke makes one unary call, with its deadline and retries.
func invoke[Q, A any](
	ctx context.Context, c *Client, kind kind, request Q,
	method func(pb.KvServiceClient, context.Context, Q, ...grpc.CallOption) (A, error),
) (A, error) {
	ctx, cancel := deadline(ctx, c.timeout)
	defer cancel()
	var answer A
	err := c.retry(ctx, kind, func(service pb.KvServiceClient) (err error) {
		answer, err = method(service, ctx, request)
		return err
	})
	if err != nil {
		var none A
		return none, err
	}
	return answer, nil
}

// deadline gives a call its timeout where its context has no deadline.
func deadline(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	if _, given := ctx.Deadline(); given {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, timeout)
}

// retry makes attempts until one succeeds, fails for good, or there is no more time. The error is an *Error.
//
// Once an attempt may have applied a write, a later attempt that certainly did not does not change that: the outcome stays unknown.
func (c *Client) retry(ctx context.Context, kind kind, attempt func(pb.KvServiceClient) error) error {
	if ended := endOf(ctx); ended != nil {
		return notSent(ended)
	}
	unknown := false
	for n := 1; ; n++ {
		if c.closed.Load() {
			failure := closed("the client")
			failure.unknown = unknown
			return failure
		}
		index := c.preferred.Load()
		failure := failureOf(ctx, attempt(c.endpoints[index].service), kind)
		if failure == nil {
			return nil
		}
		if failure.retryable() || failure.Code == codes.DeadlineExceeded {
			// An endpoint that did not answer in time is no better for the next call than one that failed.
			c.preferred.CompareAndSwap(index, (index+1)%uint32(len(c.endpoints)))
		}
		unknown = unknown || failure.unknown
		failure.unknown = unknown && !failure.decided()
		if !failure.retryable() || n > retriesMax || !c.wait(ctx, n, failure) {
			return failure
		}
	}
}

// wait sleeps before retry n: full jitter, or longer where the server asks for it. False: the deadline comes first.
func (c *Client) wait(ctx context.Context, n int, failure *Error) bool {
	wait := max(c.random(min(waitMax, waitUnit<<n)), failure.retryAfter)
	if deadline, given := ctx.Deadline(); given && time.Until(deadline) <= wait {
		return false
	}
	c.sleep(ctx, wait)
	failure.cause = endOf(ctx)
	return failure.cause == nil
}
