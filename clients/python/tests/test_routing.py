"""Operations on one key go to the node that leads its shard; nothing waits for that, and nothing depends on it."""

import json
import socket
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fake import Fake, answer, refuse

from kvstore._routing import (
    LEADERS_MAX,
    PAUSE_MAX_SECONDS,
    RING_KEPT_SECONDS,
    SERVING,
    UNUSED_SECONDS,
    Ring,
    Router,
    shard_of,
)
from kvstore.v1 import kv_pb2

Open = Callable[..., Any]
Serve = Callable[..., Fake]

STORED = answer(kv_pb2.PutResponse(version=7))
SHARDS = 4
#: How long a test waits for what must happen.
PATIENCE = 10.0


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks for the ring again at once."""
    monkeypatch.setattr("kvstore._routing.PAUSE_FIRST_SECONDS", 0.0)
    monkeypatch.setattr("kvstore._routing.CONNECT_SECONDS", 0.5)


class Cluster:
    """Nodes that tell one ring, in which each leads every other shard."""

    def __init__(self, *nodes: Fake, epoch: int = 1) -> None:
        self.nodes = nodes
        self.ring = ring(epoch, [node.endpoint for node in nodes])
        for node in nodes:
            node.ring = self.tell
            node.epoch = lambda: self.ring.epoch

    def tell(self, request: Any, context: Any) -> kv_pb2.GetRingResponse:
        return self.ring

    def lead(self, node: Fake, epoch: int) -> None:
        """`node` leads everything from now on."""
        leader = self.nodes.index(node)
        placements = [kv_pb2.RingShard(shard=shard, leader=leader, replicas=[0, 1]) for shard in range(SHARDS)]
        self.ring = kv_pb2.GetRingResponse(epoch=epoch, shards=SHARDS, nodes=self.ring.nodes, placements=placements)


def ring(epoch: int, addresses: list[str]) -> kv_pb2.GetRingResponse:
    return kv_pb2.GetRingResponse(
        epoch=epoch,
        shards=SHARDS,
        nodes=[kv_pb2.RingNode(id=f"n{n}", address=address, up=True) for n, address in enumerate(addresses)],
        placements=[
            kv_pb2.RingShard(shard=shard, leader=shard % len(addresses), replicas=[0, 1]) for shard in range(SHARDS)
        ],
    )


def key_of(leader: int) -> str:
    """A key that node `leader` of two leads."""
    return next(key for key in (f"key/{n}" for n in count()) if shard_of(key, SHARDS) % 2 == leader)


def until(reached: Callable[[], bool], call: Callable[[], object]) -> None:
    """Calls, at least once, until something is so."""
    deadline = time.monotonic() + PATIENCE
    call()
    while not reached():
        assert time.monotonic() < deadline, "it never came to that"
        call()


def until_at(node: Fake, call: Callable[[], object]) -> None:
    """Calls until `node` is the one that answers."""
    before = len(node.requests)
    until(lambda: len(node.requests) > before, call)


def test_vectors() -> None:
    vectors = json.loads((Path(__file__).parents[3] / "tests/data/shard_of.json").read_text())
    assert len(vectors) > 10
    for vector in vectors:
        for shards, shard in vector["shards"].items():
            assert shard_of(vector["key"], int(shards)) == shard, vector["key"]


def test_a_key_goes_to_its_leader_and_the_rest_to_the_endpoint(open_client: Open, serve: Serve) -> None:
    first, second = serve(STORED), serve(STORED)
    Cluster(first, second)
    client = open_client(first)
    until_at(second, lambda: client.put(key_of(1), 1))
    counts = len(first.requests), len(second.requests)
    for _ in range(5):
        client.put(key_of(0), 1)
        client.put(key_of(1), 1)
        client.batch_put({key_of(1): 1})
    assert (len(first.requests), len(second.requests)) == (counts[0] + 10, counts[1] + 5)
    assert second.epochs[-1] == "1"


def test_a_copy_at_hand_is_read_from_the_endpoint(open_client: Open, serve: Serve) -> None:
    found = answer(kv_pb2.GetResponse(key="a", value="1", version=7))
    first, second = serve(found), serve(found)
    Cluster(first, second)
    client = open_client(first)
    until_at(second, lambda: client.get(key_of(1)))
    before = len(second.requests)
    client.get(key_of(1), consistency="stale")
    assert len(second.requests) == before


@pytest.mark.parametrize("told_by", ["answer", "error"])
def test_another_epoch_is_noticed(open_client: Open, serve: Serve, told_by: str) -> None:
    act = STORED if told_by == "answer" else refuse("FAILED_PRECONDITION", "FAILED_PRECONDITION")
    first, second = serve(act), serve(act)
    first.refuses = second.refuses = told_by == "error"
    cluster = Cluster(first, second)
    client = open_client(first)

    def call() -> None:
        try:
            client.put(key_of(1), 1)
        except Exception as error:
            assert told_by == "error", error

    until_at(second, call)
    asked = first.rings + second.rings
    cluster.lead(first, epoch=2)
    until_at(first, call)
    assert first.rings + second.rings == asked + 1
    for _ in range(5):
        call()
    assert first.rings + second.rings == asked + 1, "the epoch is known"


def test_a_dead_leader_is_passed_over_with_the_same_request_id(open_client: Open, serve: Serve) -> None:
    first, second = serve(STORED), serve(STORED)
    Cluster(first, second)
    client = open_client(first)
    until_at(second, lambda: client.put(key_of(1), 1))
    second.stop()
    asked = len(first.requests)
    for number in range(3):
        assert client.put(key_of(1), 1, request_id=f"id-{number}") == 7
    assert [request.request_id for request in first.requests[asked:]] == ["id-0", "id-1", "id-2"]


def test_a_leader_that_does_not_serve_is_left_alone_until_the_ring_is_known_again(
    open_client: Open, serve: Serve
) -> None:
    first, second = serve(STORED), serve(STORED)
    Cluster(first, second)
    client = open_client(first)
    until_at(second, lambda: client.put(key_of(1), 1))
    told, now = first.ring, threading.Event()
    first.ring = lambda request, context: now.wait(PATIENCE) and told(request, context)
    before, asked = len(second.requests), len(first.requests)
    second.acts = [refuse("UNAVAILABLE", "NOT_SERVING"), STORED]
    for _ in range(3):
        assert client.put(key_of(1), 1) == 7
    assert (len(second.requests), len(first.requests)) == (before + 1, asked + 3)
    now.set()
    until_at(second, lambda: client.put(key_of(1), 1))


def test_a_leader_that_is_starting_is_not_used(open_client: Open, serve: Serve) -> None:
    first, second = serve(STORED), serve(STORED)
    Cluster(first, second)
    second.serving = False
    client = open_client(first)
    until(lambda: first.rings == 3, lambda: client.put(key_of(1), 1))
    assert not second.requests
    second.serving = True
    until_at(second, lambda: client.put(key_of(1), 1))


def test_an_overloaded_leader_stays_the_leader(open_client: Open, serve: Serve) -> None:
    first, second = serve(STORED), serve(STORED)
    Cluster(first, second)
    client = open_client(first)
    until_at(second, lambda: client.put(key_of(1), 1))
    before, asked = len(second.requests), first.rings
    second.acts = [refuse("RESOURCE_EXHAUSTED", "OVERLOADED"), STORED]
    client.put(key_of(1), 1)
    client.put(key_of(1), 1)
    assert len(second.requests) == before + 2
    assert first.rings == asked


def test_a_leader_that_cannot_be_reached_costs_no_call_anything(open_client: Open, serve: Serve) -> None:
    with socket.socket() as silent:
        # Takes connections and says nothing, like a network that swallows packets.
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        first = serve(STORED)
        told = ring(1, [first.endpoint, f"127.0.0.1:{silent.getsockname()[1]}"])
        first.ring = answer(told)
        client = open_client(first)
        slowest = 0.0

        def call() -> None:
            nonlocal slowest
            started = time.monotonic()
            assert client.put(key_of(1), 1) == 7
            slowest = max(slowest, time.monotonic() - started)

        until(lambda: first.rings == 3, call)
        assert slowest < 0.4, "connecting takes 0.5 s"


@pytest.mark.parametrize(
    "broken",
    [
        refuse("UNIMPLEMENTED"),
        refuse("UNAVAILABLE", "NOT_SERVING"),
        answer(kv_pb2.GetRingResponse(epoch=1, shards=9)),
        answer(kv_pb2.GetRingResponse(epoch=1, shards=1, placements=[kv_pb2.RingShard(shard=0, leader=4)])),
    ],
)
def test_without_a_ring_everything_is_as_it_was(open_client: Open, serve: Serve, broken: Any) -> None:
    first = serve(STORED)
    first.ring = broken
    client = open_client(first)
    until(lambda: first.rings == 2, lambda: client.put("a", 1))
    assert set(first.epochs) == {None}


def test_routing_can_be_switched_off(open_client: Open, serve: Serve) -> None:
    first, second = serve(STORED), serve(STORED)
    Cluster(first, second)
    client = open_client(first, route=False)
    for _ in range(20):
        client.put(key_of(1), 1)
    assert (first.rings, len(second.requests), set(first.epochs)) == (0, 0, {None})


def test_a_client_that_wants_tls_is_never_sent_elsewhere_without() -> None:
    assert begun_by(router("https://h:1"), 3) == 0
    assert begun_by(router("http://h:1,https://h:2"), 3) == 0
    assert begun_by(router("http://h:1,h:2"), 3) == 1, "one at a time"


def test_the_ring_is_asked_for_less_often_while_it_stays_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore._routing.PAUSE_FIRST_SECONDS", 1.0)
    now = [100.0]
    asking = router("h:1", clock=lambda: now[0])
    assert begun_by(asking, 1) == 1
    for epoch, pause in enumerate([1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 1.0]):
        # Only the epoch is another one, until a leader is.
        asking._learned(Ring(ring(epoch, ["h:1"] if pause == 1.0 and epoch else ["h:2"])))
        asking._learning, asking._wanted = False, True
        now[0] += pause - 0.01
        assert begun_by(asking, 1) == 0, f"not before {pause} s"
        now[0] += 0.02
        assert begun_by(asking, 1) == 1


def test_an_old_ring_is_asked_for_again_as_leaders_move_without_another_epoch() -> None:
    now = [0.0]
    asking = router("h:1", clock=lambda: now[0])
    assert begun_by(asking, 1) == 1
    asking._learned(Ring(ring(1, ["h:1"])))
    asking._learning = False
    now[0] += RING_KEPT_SECONDS - 0.01
    assert begun_by(asking, 3) == 0
    now[0] += 0.02
    assert begun_by(asking, 3) == 1
    asking._learned(None)
    asking._learning = False
    now[0] += PAUSE_MAX_SECONDS
    assert begun_by(asking, 3) == 1, "it still is old where nobody gave another one"


def test_no_more_leaders_are_connected_than_allowed() -> None:
    now = [0.0]
    many = router("h:1", clock=lambda: now[0])
    placements = [kv_pb2.RingShard(shard=n, leader=n) for n in range(200)]
    nodes = [kv_pb2.RingNode(address=f"n{n}:1") for n in range(200)]
    answered = kv_pb2.GetRingResponse(epoch=1, shards=200, nodes=nodes, placements=placements)
    connecting, _ = many._learned(Ring(answered))
    assert len(connecting) == LEADERS_MAX
    for address in connecting:
        many._connected(address, SERVING)
    assert many._learned(Ring(answered)) == ({}, [])
    # Those that lead nothing any more make room, and are closed when no call can be under way.
    for placement in answered.placements[:10]:
        placement.ClearField("leader")
    connecting, closing = many._learned(Ring(answered))
    assert (len(connecting), closing) == (10, [])
    now[0] += UNUSED_SECONDS + 1
    assert many._learned(Ring(answered))[1] == [f"n{n}:1" for n in range(10)]


class Counting(Router[str, str]):
    """Only counts how often it would ask."""

    begun = 0

    def _start(self) -> None:
        self.begun += 1


def router(endpoints: str, **options: Any) -> Counting:
    return Counting(endpoints, lambda address, secure: address, lambda channel: channel, route=True, **options)


def begun_by(counting: Counting, calls: int) -> int:
    before = counting.begun
    for _ in range(calls):
        counting.target("a")
    return counting.begun - before
