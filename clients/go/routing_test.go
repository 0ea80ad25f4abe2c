package kvstore

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

const testShards = 4

// node is a server of a cluster whose Puts the test may have fail.
type node struct {
	*fake
	fail atomic.Pointer[error] // the next Put, once

	mutex  sync.Mutex
	ids    []string // request ids
	epochs []string // that came with Puts
}

// cluster has two nodes that tell one ring, in which each leads every other shard.
type cluster struct {
	first, second *node
	ring          atomic.Pointer[pb.GetRingResponse]
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{}
	c.first, c.second = c.start(t), c.start(t)
	c.ring.Store(ringOf(1, c.first.address, c.second.address))
	return c
}

func (c *cluster) start(t *testing.T) *node {
	started := &node{fake: &fake{}}
	started.onRing = func(context.Context) (*pb.GetRingResponse, error) { return c.ring.Load(), nil }
	started.onGet = func(_ context.Context, request *pb.GetRequest) (*pb.GetResponse, error) {
		return &pb.GetResponse{Key: request.GetKey(), Content: &pb.GetResponse_Value{Value: "1"}}, nil
	}
	started.onPut = func(ctx context.Context, request *pb.PutRequest) (*pb.PutResponse, error) {
		head, _ := metadata.FromIncomingContext(ctx)
		known := head.Get(epochKey)
		started.mutex.Lock()
		started.ids = append(started.ids, request.GetRequestId())
		started.epochs = append(started.epochs, known...)
		started.mutex.Unlock()
		if epoch := strconv.FormatUint(c.ring.Load().GetEpoch(), 10); len(known) > 0 && known[0] != epoch {
			if err := grpc.SetHeader(ctx, metadata.Pairs(epochKey, epoch)); err != nil {
				return nil, err
			}
		}
		if failure := started.fail.Swap(nil); failure != nil {
			return nil, *failure
		}
		return &pb.PutResponse{Version: 7}, nil
	}
	started.fake.start(t)
	return started
}

// ringOf has the nodes lead in turn.
func ringOf(epoch uint64, addresses ...string) *pb.GetRingResponse {
	ring := &pb.GetRingResponse{Epoch: epoch, Shards: testShards}
	for _, address := range addresses {
		ring.Nodes = append(ring.Nodes, &pb.RingNode{Address: address, Up: true})
	}
	for shard := range uint32(testShards) {
		leader := shard % uint32(len(addresses))
		ring.Placements = append(ring.Placements, &pb.RingShard{Shard: shard, Leader: &leader})
	}
	return ring
}

// keyOf gives a key that node 0 or 1 of two leads.
func keyOf(leader int) string {
	for n := 0; ; n++ {
		if key := fmt.Sprintf("key/%d", n); shardOf(key, testShards)%2 == leader {
			return key
		}
	}
}

// routed makes a client that knows one endpoint and asks for the ring again at once.
func routed(t *testing.T, config Config, endpoint *fake) *Client {
	t.Helper()
	client, _ := connect(t, config, endpoint)
	if client.router != nil {
		client.router.pause, client.router.pauseFirst = 0, 0
	}
	return client
}

func mustPut(t *testing.T, client *Client, key string, given ...Option) {
	t.Helper()
	if version, err := client.Put(context.Background(), key, 1, given...); err != nil || version != 7 {
		t.Fatalf("got %d, %v", version, err)
	}
}

// untilAt puts a key until the node is the one that answers.
func untilAt(t *testing.T, client *Client, at *node, key string) {
	t.Helper()
	before := at.calls.Load()
	eventually(t, "the node is asked", func() bool {
		mustPut(t, client, key)
		return at.calls.Load() > before
	})
}

// settled waits until nothing goes on in the background.
func settled(t *testing.T, client *Client) {
	t.Helper()
	eventually(t, "the ring is known", func() bool {
		client.router.mutex.Lock()
		defer client.router.mutex.Unlock()
		return !client.router.learning
	})
}

func TestShardsAreThoseOfTheSharedVectors(t *testing.T) {
	text, err := os.ReadFile("../../tests/data/shard_of.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors []struct {
		Key    string
		Shards map[string]int
	}
	if err := json.Unmarshal(text, &vectors); err != nil || len(vectors) <= 10 {
		t.Fatalf("%d vectors, %v", len(vectors), err)
	}
	for _, vector := range vectors {
		for given, want := range vector.Shards {
			shards, err := strconv.Atoi(given)
			if err != nil {
				t.Fatal(err)
			}
			if got := shardOf(vector.Key, shards); got != want {
				t.Errorf("%q of %d shards is in %d, want %d", vector.Key, shards, got, want)
			}
		}
	}
}

func TestAKeyGoesToItsLeaderAndTheRestToTheEndpoint(t *testing.T) {
	c := startCluster(t)
	client := routed(t, Config{}, c.first.fake)
	untilAt(t, client, c.second, keyOf(1))
	first, second := c.first.calls.Load(), c.second.calls.Load()
	for range 5 {
		mustPut(t, client, keyOf(0))
		mustPut(t, client, keyOf(1))
		if _, err := client.Get(context.Background(), keyOf(1)); err != nil {
			t.Fatal(err)
		}
		if _, err := client.Get(context.Background(), keyOf(1), WithConsistency(Stale)); err != nil {
			t.Fatal(err)
		}
	}
	if first, second = c.first.calls.Load()-first, c.second.calls.Load()-second; first != 10 || second != 10 {
		t.Fatalf("%d and %d calls, want 10 (the key, and copies at hand) and 10 (put and get)", first, second)
	}
	if last := c.second.epochs[len(c.second.epochs)-1]; last != "1" {
		t.Fatalf("the epoch %q went with the call", last)
	}
}

func TestAnotherEpochIsNoticed(t *testing.T) {
	c := startCluster(t)
	client := routed(t, Config{}, c.first.fake)
	untilAt(t, client, c.second, keyOf(1))
	settled(t, client)
	asked := c.first.rings.Load()
	c.ring.Store(ringOf(2, c.first.address))
	untilAt(t, client, c.first, keyOf(1))
	settled(t, client)
	for range 5 {
		mustPut(t, client, keyOf(1))
	}
	settled(t, client)
	if now := c.first.rings.Load(); now != asked+1 {
		t.Fatalf("the ring was asked for %d times, want once", now-asked)
	}
}

func TestAnotherEpochIsNoticedAlsoWhereItComesWithAnError(t *testing.T) {
	client := routed(t, Config{}, startCluster(t).first.fake)
	client.router.ring.Store(&ring{epoch: "1"})
	client.router.wanted.Store(false)
	client.router.heard(nil, metadata.Pairs(epochKey, "1"))
	if client.router.wanted.Load() {
		t.Fatal("the epoch is known")
	}
	client.router.heard(nil, metadata.Pairs(epochKey, "2"))
	if !client.router.wanted.Load() {
		t.Fatal("the epoch is another one")
	}
}

func TestADeadLeaderIsPassedOverWithTheSameRequestID(t *testing.T) {
	c := startCluster(t)
	client := routed(t, Config{}, c.first.fake)
	untilAt(t, client, c.second, keyOf(1))
	c.second.server.Stop()
	before := len(c.first.ids)
	for n := range 3 {
		mustPut(t, client, keyOf(1), WithRequestID(fmt.Sprint("id-", n)))
	}
	if ids := c.first.ids[before:]; !slices.Equal(ids, []string{"id-0", "id-1", "id-2"}) {
		t.Fatalf("request ids %q", ids)
	}
}

func TestALeaderThatDoesNotServeIsLeftAloneUntilTheRingIsKnownAgain(t *testing.T) {
	for _, failure := range []error{noLeader, refusal(codes.Unavailable, "NOT_SERVING"), bareUnavailable, outcomeUnknown} {
		c := startCluster(t)
		client := routed(t, Config{}, c.first.fake)
		untilAt(t, client, c.second, keyOf(1))
		settled(t, client)
		now := make(chan struct{})
		held := c.first.onRing
		c.first.onRing = func(ctx context.Context) (*pb.GetRingResponse, error) {
			<-now
			return held(ctx)
		}
		first, second := c.first.calls.Load(), c.second.calls.Load()
		c.second.fail.Store(&failure)
		for range 3 {
			mustPut(t, client, keyOf(1))
		}
		if first, second = c.first.calls.Load()-first, c.second.calls.Load()-second; first != 3 || second != 1 {
			t.Fatalf("after %v: %d and %d calls, want 3 and 1", failure, first, second)
		}
		close(now)
		untilAt(t, client, c.second, keyOf(1))
	}
}

func TestALeaderThatIsStartingIsNotUsed(t *testing.T) {
	c := startCluster(t)
	c.second.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	client := routed(t, Config{}, c.first.fake)
	eventually(t, "the ring is asked for again and again", func() bool {
		mustPut(t, client, keyOf(1))
		return c.first.rings.Load() >= 3
	})
	if c.second.calls.Load() != 0 {
		t.Fatal("it was used")
	}
	c.second.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	untilAt(t, client, c.second, keyOf(1))
}

func TestAnOverloadedLeaderStaysTheLeader(t *testing.T) {
	c := startCluster(t)
	client := routed(t, Config{}, c.first.fake)
	untilAt(t, client, c.second, keyOf(1))
	settled(t, client)
	before, asked := c.second.calls.Load(), c.first.rings.Load()
	c.second.fail.Store(&overloaded)
	mustPut(t, client, keyOf(1))
	mustPut(t, client, keyOf(1))
	settled(t, client)
	if calls, rings := c.second.calls.Load()-before, c.first.rings.Load()-asked; calls != 2 || rings != 0 {
		t.Fatalf("%d calls, %d questions for the ring", calls, rings)
	}
}

func TestALeaderThatCannotBeReachedCostsNoCallAnything(t *testing.T) {
	// Takes connections and says nothing, like a network that swallows packets.
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	c := startCluster(t)
	c.ring.Store(ringOf(1, c.first.address, silent.Addr().String()))
	client := routed(t, Config{}, c.first.fake)
	var slowest time.Duration
	eventually(t, "it was given up", func() bool {
		started := time.Now()
		mustPut(t, client, keyOf(1))
		slowest = max(slowest, time.Since(started))
		return c.first.rings.Load() >= 2
	})
	if slowest > connectTimeout/2 {
		t.Fatalf("a call took %v", slowest)
	}
}

func TestWithoutARingEverythingIsAsItWas(t *testing.T) {
	none := func(answer *pb.GetRingResponse, err error) func(context.Context) (*pb.GetRingResponse, error) {
		return func(context.Context) (*pb.GetRingResponse, error) { return answer, err }
	}
	far := uint32(1 << 31)
	for name, broken := range map[string]func(context.Context) (*pb.GetRingResponse, error){
		"an older server":  nil,
		"a refusal":        none(nil, refusal(codes.Unavailable, "NOT_SERVING")),
		"no placements":    none(&pb.GetRingResponse{Epoch: 1, Shards: 9}, nil),
		"no shards":        none(&pb.GetRingResponse{Epoch: 1}, nil),
		"a foreign leader": none(&pb.GetRingResponse{Shards: 1, Placements: []*pb.RingShard{{Leader: &far}}}, nil),
		"a foreign shard": none(&pb.GetRingResponse{
			Shards: 1, Nodes: []*pb.RingNode{{}}, Placements: []*pb.RingShard{{Shard: far, Leader: new(uint32)}},
		}, nil),
	} {
		c := startCluster(t)
		c.first.onRing = broken
		client := routed(t, Config{}, c.first.fake)
		eventually(t, name+" is asked again", func() bool {
			mustPut(t, client, keyOf(1))
			return c.first.rings.Load() >= 2
		})
		if len(c.first.epochs) != 0 || c.second.calls.Load() != 0 {
			t.Fatalf("%s: epochs %q, %d calls of the other node", name, c.first.epochs, c.second.calls.Load())
		}
	}
}

func TestAnAddressThatIsNoneIsNotUsed(t *testing.T) {
	c := startCluster(t)
	c.ring.Store(ringOf(1, c.first.address, "https:// nowhere"))
	client := routed(t, Config{}, c.first.fake)
	untilAt(t, client, c.first, keyOf(0))
	settled(t, client)
	mustPut(t, client, keyOf(1))
}

func TestRoutingCanBeSwitchedOff(t *testing.T) {
	c := startCluster(t)
	client := routed(t, Config{WithoutRouting: true}, c.first.fake)
	for range 20 {
		mustPut(t, client, keyOf(1))
	}
	if c.first.rings.Load() != 0 || c.second.calls.Load() != 0 || len(c.first.epochs) != 0 {
		t.Fatalf("%d questions, %d calls, epochs %q", c.first.rings.Load(), c.second.calls.Load(), c.first.epochs)
	}
}

func TestAClientThatWantsTLSIsNeverSentElsewhereWithout(t *testing.T) {
	for endpoint, want := range map[string]bool{"https://h:1": false, "http://h:1": true, "h:1": true} {
		client, _ := connect(t, Config{Endpoints: []string{"h:2", endpoint}})
		if routes := client.router != nil; routes != want {
			t.Errorf("%s: routes %t", endpoint, routes)
		}
	}
}

func TestTheRingIsAskedForOneAtATimeAndLessOftenWhileItStaysTheSame(t *testing.T) {
	client, _ := connect(t, Config{Endpoints: []string{unusedAddress(t)}})
	r, now := client.router, time.Now()
	r.now = func() time.Time { return now }
	mayAsk := func() bool { return !now.Before(r.notBefore) }
	for n, pause := range []time.Duration{1, 2, 4, 8, 15, 15, 1} {
		address := "h:1"
		if n == 6 {
			address = "h:2"
		}
		r.learned(ringOf(uint64(n), address)) // only the epoch is another one, until a leader is
		now = now.Add(pause*time.Second - time.Millisecond)
		if mayAsk() {
			t.Fatalf("asked for before %d s", pause)
		}
		now = now.Add(time.Millisecond)
		if !mayAsk() {
			t.Fatalf("not asked for after %d s", pause)
		}
	}
}

func TestAnOldRingIsAskedForAgainAsLeadersMoveWithoutAnotherEpoch(t *testing.T) {
	c := startCluster(t)
	client := routed(t, Config{}, c.first.fake)
	var passed atomic.Int64
	client.router.now = func() time.Time { return time.Now().Add(time.Duration(passed.Load())) }
	untilAt(t, client, c.second, keyOf(1))
	settled(t, client)
	asked := c.first.rings.Load()
	c.ring.Store(ringOf(1, c.first.address))
	for range 5 {
		mustPut(t, client, keyOf(1))
	}
	settled(t, client)
	if rings := c.first.rings.Load(); rings != asked {
		t.Fatalf("asked for %d times while it was fresh", rings-asked)
	}
	passed.Store(int64(ringKept))
	untilAt(t, client, c.first, keyOf(1))
	settled(t, client)
	if rings := c.first.rings.Load(); rings != asked+1 {
		t.Fatalf("asked for %d times, want once", rings-asked)
	}
}

func TestNoTwoQuestionsForTheRingAreUnderWay(t *testing.T) {
	c := startCluster(t)
	now := make(chan struct{})
	defer close(now)
	c.first.onRing = func(context.Context) (*pb.GetRingResponse, error) {
		<-now
		return c.ring.Load(), nil
	}
	client := routed(t, Config{}, c.first.fake)
	eventually(t, "the ring is asked for", func() bool {
		mustPut(t, client, keyOf(1))
		return c.first.rings.Load() > 0
	})
	for range 20 {
		mustPut(t, client, keyOf(1))
	}
	if rings := c.first.rings.Load(); rings != 1 {
		t.Fatalf("%d questions at a time", rings)
	}
}

func TestNoMoreLeadersAreConnectedThanAllowedAndOldOnesAreClosed(t *testing.T) {
	client, _ := connect(t, Config{Endpoints: []string{unusedAddress(t)}})
	r, now := client.router, time.Now()
	r.now = func() time.Time { return now }
	many := &pb.GetRingResponse{Epoch: 1, Shards: 200}
	for n := range uint32(200) {
		many.Nodes = append(many.Nodes, &pb.RingNode{Address: fmt.Sprintf("n%d:1", n)})
		many.Placements = append(many.Placements, &pb.RingShard{Shard: n, Leader: &n})
	}
	if checked := r.learned(many); len(checked) != leadersMax {
		t.Fatalf("%d leaders, want %d", len(checked), leadersMax)
	}
	for _, placement := range many.Placements[:10] {
		placement.Leader = nil
	}
	r.learned(many)
	if len(r.leaders) != leadersMax+10 {
		t.Fatalf("%d leaders; those that lead nothing any more are kept while calls may be under way", len(r.leaders))
	}
	old := r.leaders["n0:1"].connection
	now = now.Add(leaderKept + time.Second)
	r.learned(many)
	if len(r.leaders) != leadersMax || r.leaders["n0:1"] != nil {
		t.Fatalf("%d leaders, want %d", len(r.leaders), leadersMax)
	}
	if state := old.GetState(); state != connectivity.Shutdown {
		t.Fatalf("an old connection is %v", state)
	}
}

func TestClosingTheClientEndsWhatGoesOnInTheBackground(t *testing.T) {
	c := startCluster(t)
	c.first.onRing = func(ctx context.Context) (*pb.GetRingResponse, error) { return nil, silent(ctx) }
	client := routed(t, Config{}, c.first.fake)
	eventually(t, "the ring is asked for", func() bool {
		mustPut(t, client, keyOf(1))
		return c.first.rings.Load() > 0
	})
	if err := client.Close(); err != nil {
		t.Fatal(err)
	}
	settled(t, client)
}
