package kvstore

import (
	"math"
	"time"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// Option changes one call. Each says which calls take it; any other call refuses it, so that nothing is silently ignored.
type Option struct {
	name  string
	calls calls
	set   func(*options) error
}

// calls is a set of methods.
type calls uint

const (
	callPut calls = 1 << iota
	callGet
	callDelete
	callBatchPut
	callBatchGet
	callRange
	callScan
	callSession

	writes = callPut | callDelete | callBatchPut
	reads  = callGet | callBatchGet | callRange | callScan
	ranges = callRange | callScan
)

var callNames = map[calls]string{
	callPut: "Put", callGet: "Get", callDelete: "Delete", callBatchPut: "BatchPut", callBatchGet: "BatchGet",
	callRange: "Range", callScan: "Scan", callSession: "Session",
}

type options struct {
	ttl         *uint32
	ifVersion   *uint64
	requestID   *string
	consistency Consistency
	prefix      *string
	start, end  string
	limit       *uint64
	pageSize    *uint32
	reverse     bool
	keysOnly    bool
	window      int
}

// WithTTL lets what is written expire after ttl: whole seconds, at least one. For Put, PutText, PutRaw, BatchPut, BatchPutText.
func WithTTL(ttl time.Duration) Option {
	return Option{"WithTTL", callPut | callBatchPut, func(o *options) error {
		if ttl < time.Second || ttl%time.Second != 0 || ttl/time.Second > math.MaxUint32 {
			return invalid(reasonInvalidTTL, "the ttl is %v; it must be whole seconds, 1 to %d", ttl, uint32(math.MaxUint32))
		}
		seconds := uint32(ttl / time.Second)
		o.ttl = &seconds
		return nil
	}}
}

// WithIfVersion writes only if the key's version is this one; 0: only if the key is absent. Else the call fails with
// [ErrVersionMismatch]. For Put, PutText, PutRaw, Delete.
func WithIfVersion(version uint64) Option {
	return option("WithIfVersion", callPut|callDelete, func(o *options) { o.ifVersion = &version })
}

// WithRequestID names the write, 1 to 64 bytes, so that it can be repeated within 10 minutes and is applied once. Without it each call makes its
// own id. For all writes.
func WithRequestID(id string) Option {
	return option("WithRequestID", writes, func(o *options) { o.requestID = &id })
}

// Consistency is how fresh a read must be.
type Consistency = pb.Consistency

const (
	// Linearizable sees every write that was acknowledged before the read began. The default.
	Linearizable = pb.Consistency_CONSISTENCY_LINEARIZABLE
	// Stale answers from the copy at hand, which may lag behind.
	Stale = pb.Consistency_CONSISTENCY_STALE
	// Lease answers from the leader's lease; refused unless the operator has switched leases on.
	Lease = pb.Consistency_CONSISTENCY_LEASE
)

// WithConsistency says how fresh the answer must be. For all reads.
func WithConsistency(consistency Consistency) Option {
	return option("WithConsistency", reads, func(o *options) { o.consistency = consistency })
}

// WithPrefix takes only keys that begin with prefix. Combines with the bounds. For Range and Scan.
func WithPrefix(prefix string) Option {
	return option("WithPrefix", ranges, func(o *options) { o.prefix = &prefix })
}

// WithStart takes only keys from this one on. For Range and Scan.
func WithStart(key string) Option {
	return option("WithStart", ranges, func(o *options) { o.start = key })
}

// WithEnd takes only keys below this one; empty: no bound. For Range and Scan.
func WithEnd(key string) Option {
	return option("WithEnd", ranges, func(o *options) { o.end = key })
}

// WithLimit ends after this many entries, at least 1. For Range and Scan.
func WithLimit(entries uint64) Option {
	return option("WithLimit", ranges, func(o *options) { o.limit = &entries })
}

// WithPageSize is the number of entries fetched at a time, 1 to 10,000 by default; without it the server's (1,000). For Range.
func WithPageSize(entries uint32) Option {
	return option("WithPageSize", callRange, func(o *options) { o.pageSize = &entries })
}

// WithReverse goes from the last key to the first. For Range and Scan.
func WithReverse() Option {
	return option("WithReverse", ranges, func(o *options) { o.reverse = true })
}

// WithKeysOnly leaves the values out. For Range and Scan.
func WithKeysOnly() Option {
	return option("WithKeysOnly", ranges, func(o *options) { o.keysOnly = true })
}

// WithWindow bounds how many operations wait for their answer at a time; 512 by default. For Session.
func WithWindow(operations int) Option {
	return Option{"WithWindow", callSession, func(o *options) error {
		if operations < 1 {
			return invalid(reasonInvalidOption, "the window is %d operations; it must be at least 1", operations)
		}
		o.window = operations
		return nil
	}}
}

func option(name string, calls calls, set func(*options)) Option {
	return Option{name, calls, func(o *options) error { set(o); return nil }}
}

// collect applies what the caller of call gave.
func collect(call calls, given []Option) (options, error) {
	o := options{window: defaultWindow}
	for _, option := range given {
		if option.calls&call == 0 {
			return o, invalid(reasonInvalidOption, "%s does not apply to %s", option.name, callNames[call])
		}
		if err := option.set(&o); err != nil {
			return o, err
		}
	}
	return o, nil
}
