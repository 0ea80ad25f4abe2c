package kvstore

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

const (
	retriesMax = 10
	waitFirst  = 50 * time.Millisecond
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
	until, _ := ctx.Deadline()
	var answer A
	err := c.retry(ctx, until, kind, c.router.route(request), func(service pb.KvServiceClient) (err error) {
		var head, trailer metadata.MD
		answer, err = method(service, c.router.outgoing(ctx), request, grpc.Header(&head), grpc.Trailer(&trailer))
		c.router.heard(head, trailer)
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

// place is where a call goes: to a shard's leader, or without one to an endpoint, by its index.
type place struct {
	leader   *leader
	endpoint uint32
	service  pb.KvServiceClient
}

// endpoint gives the one whose turn it is.
func (c *Client) endpoint() place {
	index := c.preferred.Load()
	return place{endpoint: index, service: c.endpoints[index].service}
}

// retry makes attempts until one succeeds, fails for good, or there is no more time: the first at a leader if there is one, the others at
// the endpoints. The error is an *Error.
func (c *Client) retry(
	ctx context.Context, until time.Time, kind kind, leader *leader, attempt func(pb.KvServiceClient) error,
) error {
	if err := c.mayBegin(ctx); err != nil {
		return err
	}
	for attempts := (attempts{client: c, until: until}); ; {
		at := c.endpoint()
		if leader != nil {
			at, leader = place{leader: leader, service: leader.service}, nil
		}
		err := attempt(at.service)
		if err == nil {
			return nil
		}
		if err := attempts.failed(ctx, at, c.failureOf(ctx, err, kind)); err != nil {
			return err
		}
	}
}

// mayBegin tells why nothing is to be sent, if so.
func (c *Client) mayBegin(ctx context.Context) error {
	if c.closed.Load() {
		return closed("the client")
	}
	if ended := endOf(ctx); ended != nil {
		return notSent(ended)
	}
	return nil
}

// attempts are those of one call, or of one step of a scan.
type attempts struct {
	client  *Client
	until   time.Time // the deadline of all of them
	retries int
	unknown *Error // the last failure that left the outcome open
}

// failedAt takes in how a call failed somewhere: a place that did not answer in time is no better for the next call than one that failed.
func (c *Client) failedAt(at place, failure *Error) {
	if !failure.retryable() && failure.Code != codes.DeadlineExceeded {
		return
	}
	if at.leader == nil {
		c.preferred.CompareAndSwap(at.endpoint, (at.endpoint+1)%uint32(len(c.endpoints)))
	}
	c.router.failed(at.leader, failure)
}

// failed takes in how an attempt somewhere failed, and waits until the next one is to be made. An error is what the call has come to
// instead.
//
// Once an attempt may have applied a write, only an answer about the request itself tells more. Any other failure tells about its own
// attempt: the outcome stays unknown.
func (a *attempts) failed(ctx context.Context, at place, failure *Error) error {
	a.client.failedAt(at, failure)
	if failure.unknown {
		a.unknown = failure
	}
	if failure.retryable() && a.retries < retriesMax && a.wait(ctx, failure) {
		if !a.client.closed.Load() {
			return nil
		}
		failure = closed("the client")
	}
	if a.unknown == nil || a.unknown == failure || failure.settles() {
		return failure
	}
	a.unknown.cause = failure.cause
	a.unknown.Message += "; then " + failure.text()
	return a.unknown
}

// wait sleeps before the next attempt: full jitter, or longer where the server asks for it. False: the deadline comes first.
func (a *attempts) wait(ctx context.Context, failure *Error) bool {
	wait := max(a.client.random(min(waitMax, waitFirst<<a.retries)), failure.retryAfter)
	if time.Until(a.until) <= wait {
		return false
	}
	a.retries++
	a.client.sleep(ctx, wait)
	failure.cause = endOf(ctx)
	return failure.cause == nil
}
