package kvstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What to do about a failure: compare with errors.Is. A failure matches at most one of these.
var (
	// ErrInvalidArgument means that the request is wrong: repeating it cannot help.
	ErrInvalidArgument = errors.New("kvstore: invalid argument")
	// ErrVersionMismatch means that the condition of [WithIfVersion] did not hold; nothing was written.
	ErrVersionMismatch = errors.New("kvstore: version mismatch")
	// ErrOverloaded means that a limit of the server is reached; nothing was written.
	ErrOverloaded = errors.New("kvstore: overloaded")
	// ErrUnavailable means that nobody can serve the request now; nothing was written.
	ErrUnavailable = errors.New("kvstore: unavailable")
	// ErrOutcomeUnknown means that a write may or may not have been applied. Repeating it with the same [WithRequestID]
	// within 10 minutes applies it once.
	ErrOutcomeUnknown = errors.New("kvstore: outcome unknown")
	// ErrCorruption means that stored data is damaged.
	ErrCorruption = errors.New("kvstore: corruption")
	// ErrClosed means that the client or the session was closed.
	ErrClosed = errors.New("kvstore: closed")
)

const (
	errorDomain            = "kvstore"
	reasonInvalidEndpoint  = "INVALID_ENDPOINT"
	reasonInvalidJSON      = "INVALID_JSON"
	reasonInvalidKey       = "INVALID_KEY"
	reasonInvalidOption    = "INVALID_OPTION"
	reasonInvalidRequestID = "INVALID_REQUEST_ID"
	reasonInvalidTTL       = "INVALID_TTL"
	reasonKeyNotFound      = "KEY_NOT_FOUND"
	reasonOutcomeUnknown   = "OUTCOME_UNKNOWN"
	reasonVersionMismatch  = "VERSION_MISMATCH"
)

// Error is every failure of a call. Reach it with errors.As; compare with the sentinels of this package with errors.Is. Where a deadline
// passed or the caller cancelled, context.DeadlineExceeded or context.Canceled matches as well.
type Error struct {
	// Code is the gRPC code; Unavailable for every failure of the transport but a deadline or a limit.
	Code codes.Code
	// Reason is the server's stable name of the failure, such as "INVALID_KEY". Empty when the failure is not the store's answer: the
	// transport or a proxy failed, or the deadline passed.
	Reason string
	// Message is for people.
	Message string
	// Metadata are facts about the failure, such as the limit that was exceeded.
	Metadata map[string]string

	unknown    bool          // the write may have been applied
	retryAfter time.Duration // the server asks for at least this wait
	cause      error         // why this side gave up: the context's error or ErrClosed
}

// Error tells code, reason and message.
func (e *Error) Error() string {
	text := "kvstore: "
	if e.unknown && e.Reason != reasonOutcomeUnknown {
		text += "outcome unknown: "
	}
	return text + e.text()
}

func (e *Error) text() string {
	text := code.Code(e.Code).String()
	if e.Reason != "" {
		text += " " + e.Reason
	}
	return text + ": " + e.Message
}

// Is matches the sentinels of this package, and context.DeadlineExceeded for the server's deadline, too.
func (e *Error) Is(target error) bool {
	switch target {
	case ErrOutcomeUnknown:
		return e.unknown
	case ErrInvalidArgument:
		return e.Code == codes.InvalidArgument && !e.unknown
	case ErrVersionMismatch:
		return e.Reason == reasonVersionMismatch && !e.unknown
	case ErrOverloaded:
		return e.Code == codes.ResourceExhausted && !e.unknown
	case ErrUnavailable:
		return e.Code == codes.Unavailable && !e.unknown
	case ErrCorruption:
		return e.Code == codes.DataLoss && !e.unknown
	case context.DeadlineExceeded:
		return e.Code == codes.DeadlineExceeded
	}
	return false
}

// Unwrap gives the context's error, or [ErrClosed], where that ended the call.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus is for status.FromError and status.Code.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.Code, e.Message) }

// retryable says whether another attempt may help.
func (e *Error) retryable() bool {
	return e.cause == nil && (e.unknown || e.Code == codes.Unavailable || e.Code == codes.ResourceExhausted)
}

// settles says whether this answer holds for earlier attempts of the same write, too: the store has looked at the request itself, and would
// have known its id.
func (e *Error) settles() bool {
	switch e.Code {
	case codes.InvalidArgument, codes.FailedPrecondition:
		return e.Reason != ""
	}
	return e.Reason == reasonVersionMismatch
}

// endedBy says that this side gave up, and why.
func (e *Error) endedBy(cause error) {
	e.cause, e.Code = cause, status.FromContextError(cause).Code()
	if cause == ErrClosed {
		e.Code = codes.Canceled
	}
}

func invalid(reason, format string, arguments ...any) *Error {
	return &Error{Code: codes.InvalidArgument, Reason: reason, Message: fmt.Sprintf(format, arguments...)}
}

func closed(what string) *Error {
	return &Error{Code: codes.Canceled, Message: what + " is closed", cause: ErrClosed}
}

// notSent is told apart from an end during an attempt, which leaves a write's outcome open.
func notSent(ended error) *Error {
	return &Error{Code: status.FromContextError(ended).Code(), Message: "not sent: " + ended.Error(), cause: ended}
}

// failureOf turns what grpc reports into an Error. Where the store has not answered, the end of ctx or of the client may be the reason.
func (c *Client) failureOf(ctx context.Context, err error, kind kind) *Error {
	failure := fromStatus(status.Convert(err), kind)
	if failure.Reason != "" {
		return failure
	}
	if ended := endOf(ctx); ended != nil {
		failure.endedBy(ended)
	} else if c.closed.Load() {
		failure.endedBy(ErrClosed)
	}
	return failure
}

// endOf tells whether ctx is over, and why: its deadline (or one that this package set as the cause), or its cancellation.
func endOf(ctx context.Context) error {
	// The server ends a call at the same moment, and its word may come before the context's own timer.
	deadline, given := ctx.Deadline()
	if given && !time.Now().Before(deadline) || context.Cause(ctx) == context.DeadlineExceeded {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// fromStatus reads a status and its details.
func fromStatus(answer *status.Status, kind kind) *Error {
	failure := &Error{Code: answer.Code(), Message: answer.Message()}
	for _, detail := range answer.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			if detail.GetDomain() == errorDomain {
				failure.Reason, failure.Metadata = detail.GetReason(), detail.GetMetadata()
			}
		case *errdetails.RetryInfo:
			failure.retryAfter = detail.GetRetryDelay().AsDuration()
		}
	}
	if failure.Reason == "" && mayBeTransport(failure.Code) {
		failure.unknown = kind == write
		if failure.Code != codes.DeadlineExceeded && failure.Code != codes.ResourceExhausted {
			failure.Code = codes.Unavailable
		}
	}
	failure.unknown = failure.unknown || failure.Reason == reasonOutcomeUnknown
	return failure
}

// mayBeTransport lists the codes that grpc, proxies and resets make by themselves at any moment of a call, whatever they call it. The others
// are answers that somebody gave instead of passing the call on.
func mayBeTransport(code codes.Code) bool {
	switch code {
	case codes.Unavailable, codes.Canceled, codes.DeadlineExceeded, codes.Internal, codes.Unknown, codes.Aborted, codes.ResourceExhausted:
		return true
	}
	return false
}
