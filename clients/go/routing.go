package kvstore

import (
	"context"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

const (
	// In calls the epoch of the client's ring, in answers that of the server's when it is another one.
	epochKey = "kvstore-epoch"
	// Nodes that are connected beside the endpoints; further leaders are reached over others.
	leadersMax = 64
	// Between two questions for the ring; doubled, up to the second, while that brings nothing new.
	ringPauseFirst = time.Second
	ringPauseMax   = 15 * time.Second
	ringTimeout    = 5 * time.Second
	// When a ring is old.
	ringKept = 15 * time.Second
	// How long a connection to a node that leads nothing any more is kept: calls may be under way.
	leaderKept = time.Minute
)

// router sends operations on one key straight to the node that leads its shard; any other node would have to pass them on.
//
// It asks for the ring (which node leads each shard) in the background: at first use, when an answer tells of another epoch, when a node
// could not serve a call, and when the ring is old, because leaders also move without another epoch; at most once a second, and less often
// while the answer stays the same. Only leaders that are connected and serve
// are used; that too is seen to in the background. So no call waits for any of this: without a ring, a leader or a way to it, the endpoints
// are asked as they would be otherwise. A leader that fails a call is not used before the ring was asked for again; the call's
// retries go to the endpoints.
//
// A nil router routes nothing.
type router struct {
	client  *Client
	options []grpc.DialOption
	ctx     context.Context // ends with the client
	stop    context.CancelFunc

	ring   atomic.Pointer[ring]
	wanted atomic.Bool // the ring is to be asked for, as soon as it may be

	mutex     sync.Mutex // guards what follows
	leaders   map[string]*leader
	learning  bool
	pause     time.Duration
	notBefore time.Time
	closed    bool

	// Replaced by tests.
	now        func() time.Time
	pauseFirst time.Duration
}

// ring tells who leads.
type ring struct {
	epoch   string
	leaders []*leader // of each shard; nil where none is known, or connected
	names   []string  // their addresses
	learned time.Time
}

// leader is a node that leads, or led, a shard.
type leader struct {
	connection *grpc.ClientConn
	service    pb.KvServiceClient
	shared     bool        // with an endpoint
	ready      atomic.Bool // it is connected, and served when it was last asked
	unused     time.Time   // since when it leads nothing; zero: it does
}

// newRouter makes the router of a client that has its endpoints; nil where they want TLS, as the ring tells no names that certificates could be
// compared with.
func newRouter(c *Client, config Config) *router {
	wantsTLS := func(address string) bool { return strings.HasPrefix(address, "https://") }
	if config.WithoutRouting || slices.ContainsFunc(endpointsOf(config), wantsTLS) {
		return nil
	}
	r := &router{
		client: c, options: config.DialOptions, leaders: make(map[string]*leader),
		pause: ringPauseFirst, pauseFirst: ringPauseFirst, now: time.Now,
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.wanted.Store(true)
	return r
}

// shardOf tells which of equal slices of the hash space a key falls into.
func shardOf(key string, shards int) int {
	shard, _ := bits.Mul64(xxhash.Sum64String(key), uint64(shards))
	return int(shard)
}

// route gives the leader that a request should go to; nil: any node will do. A copy at hand is any node's.
func (r *router) route(request any) *leader {
	if r == nil {
		return nil
	}
	ring := r.ring.Load()
	if (r.wanted.Load() || ring != nil && r.now().Sub(ring.learned) >= ringKept) && r.mayLearn() {
		go r.learn()
	}
	keyed, ok := request.(interface{ GetKey() string })
	if !ok || ring == nil {
		return nil
	}
	if get, ok := request.(*pb.GetRequest); ok && get.GetConsistency() == Stale {
		return nil
	}
	if leader := ring.leaders[shardOf(keyed.GetKey(), len(ring.leaders))]; leader != nil && leader.ready.Load() {
		return leader
	}
	return nil
}

// outgoing adds the epoch that is known to what goes with a call.
func (r *router) outgoing(ctx context.Context) context.Context {
	if r == nil {
		return ctx
	}
	if ring := r.ring.Load(); ring != nil {
		return metadata.AppendToOutgoingContext(ctx, epochKey, ring.epoch)
	}
	return ctx
}

// heard looks into what came with an answer.
func (r *router) heard(parts ...metadata.MD) {
	if r == nil {
		return
	}
	for _, part := range parts {
		if told := part.Get(epochKey); len(told) > 0 {
			if ring := r.ring.Load(); ring != nil && told[0] != ring.epoch {
				r.wanted.Store(true)
			}
		}
	}
}

// failed takes in that a node failed a call in a way that another one may not; leader is nil for an endpoint.
func (r *router) failed(leader *leader, failure *Error) {
	if r == nil || r.ring.Load() == nil || failure.Code == codes.ResourceExhausted {
		return
	}
	if leader != nil {
		leader.ready.Store(false)
	}
	r.wanted.Store(true)
}

// mayLearn tells whether to ask for the ring now: not while that is going on, nor when it was a moment ago.
func (r *router) mayLearn() bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.closed || r.learning || r.now().Before(r.notBefore) {
		return false
	}
	r.learning = true
	return true
}

func (r *router) learn() {
	var checks sync.WaitGroup
	for _, leader := range r.learned(r.ask()) {
		checks.Add(1)
		go func() {
			defer checks.Done()
			r.check(leader)
		}()
	}
	checks.Wait()
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.learning = false
}

// ask gives what the endpoint whose turn it is knows; nil: it failed.
func (r *router) ask() *pb.GetRingResponse {
	ctx, cancel := context.WithTimeout(r.ctx, ringTimeout)
	defer cancel()
	at := r.client.endpoint()
	answer, err := at.service.GetRing(ctx, &pb.GetRingRequest{})
	if err != nil {
		r.client.failedAt(at, r.client.failureOf(ctx, err, read))
		return nil
	}
	return answer
}

// check finds out whether a leader serves.
func (r *router) check(leader *leader) {
	ctx, cancel := context.WithTimeout(r.ctx, connectTimeout)
	defer cancel()
	health, err := healthpb.NewHealthClient(leader.connection).Check(ctx, &healthpb.HealthCheckRequest{})
	serves := err == nil && health.GetStatus() == healthpb.HealthCheckResponse_SERVING
	leader.ready.Store(serves)
	if !serves {
		r.wanted.Store(true)
	}
}

// learned takes in a ring, and gives the leaders that are to be checked before they are used.
func (r *router) learned(answer *pb.GetRingResponse) []*leader {
	names := addressesOf(answer)
	r.mutex.Lock()
	defer r.mutex.Unlock()
	last := r.ring.Load()
	if names == nil || last != nil && slices.Equal(names, last.names) {
		r.pause = min(2*r.pause, ringPauseMax)
	} else {
		r.pause = r.pauseFirst
	}
	now := r.now()
	r.notBefore = now.Add(r.pause)
	if names == nil || r.closed {
		return nil
	}
	next := &ring{epoch: strconv.FormatUint(answer.GetEpoch(), 10), leaders: make([]*leader, len(names)), names: names, learned: now}
	leading := make(map[string]*leader)
	for shard, name := range names {
		if _, known := leading[name]; !known && name != "" && len(leading) < leadersMax {
			leading[name] = r.open(name)
		}
		next.leaders[shard] = leading[name]
	}
	r.wanted.Store(false)
	r.ring.Store(next)
	r.closeUnused(leading)
	var unready []*leader
	for _, leader := range leading {
		if leader != nil && !leader.ready.Load() {
			unready = append(unready, leader)
		}
	}
	return unready
}

// open gives the node at an address, over an endpoint's connection where it is one; nil where the address is none.
func (r *router) open(address string) *leader {
	if known := r.leaders[address]; known != nil {
		known.unused = time.Time{}
		return known
	}
	opened := &leader{}
	for _, endpoint := range r.client.endpoints {
		if endpoint.connection.Target() == targetOf(address) {
			opened.connection, opened.shared = endpoint.connection, true
		}
	}
	if !opened.shared {
		connection, err := dial(address, r.options)
		if err != nil {
			return nil
		}
		opened.connection = connection
	}
	opened.service = pb.NewKvServiceClient(opened.connection)
	r.leaders[address] = opened
	return opened
}

// closeUnused closes the connections to nodes that have not led anything for a while.
func (r *router) closeUnused(leading map[string]*leader) {
	for address, leader := range r.leaders {
		switch {
		case leading[address] != nil:
		case leader.unused.IsZero():
			leader.unused = r.now()
		case r.now().Sub(leader.unused) > leaderKept:
			delete(r.leaders, address)
			leader.close()
		}
	}
}

// close ends what is going on, and all connections that are not the endpoints'.
func (r *router) close() {
	if r == nil {
		return
	}
	r.stop()
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.closed = true
	for _, leader := range r.leaders {
		leader.close()
	}
}

func (l *leader) close() {
	if !l.shared {
		_ = l.connection.Close()
	}
}

// addressesOf gives the address of each shard's leader, empty where none is known; nil where the answer is no ring.
func addressesOf(answer *pb.GetRingResponse) []string {
	nodes, placements := answer.GetNodes(), answer.GetPlacements()
	if len(placements) == 0 || uint64(len(placements)) != uint64(answer.GetShards()) {
		return nil
	}
	addresses := make([]string, len(placements))
	for _, placement := range placements {
		shard, leader := placement.GetShard(), placement.GetLeader()
		if placement.Leader == nil {
			continue
		}
		if uint64(shard) >= uint64(len(addresses)) || uint64(leader) >= uint64(len(nodes)) {
			return nil
		}
		addresses[shard] = nodes[leader].GetAddress()
	}
	return addresses
}
