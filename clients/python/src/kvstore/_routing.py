"""Sends operations on one key straight to the node that leads its shard; any other node would have to pass them on.

A router is `Endpoints` that know the ring (GetRing): which node leads each shard. It asks for it in the background: at first use,
when an answer tells of another epoch, when a node could not serve a call, and when the ring is old, because leaders also move
without another epoch; at most once a second, and less often while the answer stays the same. Only leaders that are connected and
serve are used; that too is seen to in the background. So no call waits for any of this: without a ring, a leader or a way to it,
the endpoints are asked as they would be otherwise. A leader that fails a call is not used before the ring was asked for again;
the call's retries go to the endpoints.

Nodes are reached as the ring names them, without TLS. Where an endpoint wants TLS there is no routing.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
import xxhash

from kvstore._endpoints import Endpoints
from kvstore._retry import may_be_retried
from kvstore.errors import DeadlineExceeded, KvError, Overloaded, from_rpc
from kvstore.v1.kv_pb2 import GetRingRequest, GetRingResponse
from kvstore.v1.kv_pb2_grpc import KvServiceStub

#: The epoch of the ring that one knows: in calls the client's, in answers the server's when it is another one.
EPOCH_KEY = "kvstore-epoch"
#: Most nodes that are connected beside the endpoints; further leaders are reached over others.
LEADERS_MAX = 64
#: Seconds between two questions for the ring; doubled, up to the second, while that brings nothing new.
PAUSE_FIRST_SECONDS, PAUSE_MAX_SECONDS = 1.0, 15.0
#: Seconds after which the ring is old.
RING_KEPT_SECONDS = 15.0
#: Seconds that the ring may take, and connecting to its leaders.
RING_SECONDS, CONNECT_SECONDS = 5.0, 2.0
#: Seconds that a connection to a node that leads nothing any more is kept.
UNUSED_SECONDS = 60.0
#: How nodes tell whether they serve (grpc.health.v1): the method, of which an empty request asks for all, and the answer "yes".
HEALTH, SERVING = "/grpc.health.v1.Health/Check", b"\x08\x01"

C = TypeVar("C")
S = TypeVar("S")


def shard_of(key: str, shards: int) -> int:
    """The shard that `key` belongs to: which of equal slices of the hash space it falls into."""
    return (xxhash.xxh64_intdigest(key.encode()) * shards) >> 64


def _health(channel: Any) -> Any:
    """The method by which a node tells whether it serves."""
    return channel.unary_unary(HEALTH)


class Ring:
    """Which node leads each shard."""

    def __init__(self, answer: GetRingResponse) -> None:
        if answer.shards != len(answer.placements):
            raise ValueError(f"a ring of {answer.shards} shards names {len(answer.placements)} of them")
        #: The address of each shard's leader; empty where none is known.
        self.leaders = [""] * answer.shards
        for placement in answer.placements:
            if placement.HasField("leader"):
                self.leaders[placement.shard] = answer.nodes[placement.leader].address
        #: What goes with a call.
        self.metadata = ((EPOCH_KEY, str(answer.epoch)),)

    def leader(self, key: str) -> str:
        """The address of the node that leads the shard of `key`."""
        return self.leaders[shard_of(key, len(self.leaders))]


class Router(Endpoints[C, S]):
    """What both clients' routers have in common: everything that does not wait. They learn the ring in `_start`."""

    def __init__(
        self,
        endpoints: str | Sequence[str] | None,
        connect: Callable[[str, bool], C],
        stub: Callable[[C], S],
        *,
        route: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(endpoints, connect, stub)
        self._clock = clock
        self._ring: Ring | None = None
        #: Leaders that are connected, by address.
        self._leaders: dict[str, S] = {}
        #: Since when open channels lead nowhere that is needed.
        self._unused: dict[tuple[str, bool], float] = {}
        #: Whether the ring is to be asked for, as soon as it may be.
        self._wanted = route and not any(secure for _, secure in self._addresses)
        self._learning = False
        self._pause = PAUSE_FIRST_SECONDS
        self._not_before = clock()
        #: When the ring will be old.
        self._old = math.inf

    def target(self, key: str | None) -> tuple[int | str, S]:
        """Whom to ask: the leader of `key`, else an endpoint; an address or the endpoint's number, and its stub."""
        if self._wanted or self._clock() >= self._old:
            self._begin()
        if key is not None and self._leaders and self._ring is not None:
            address = self._ring.leader(key)
            stub = self._leaders.get(address)
            if stub is not None:
                return address, stub
        return self.current()

    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """What goes with a call: the epoch that is known."""
        return None if self._ring is None else self._ring.metadata

    def heard(self, *metadata: Iterable[Any] | None) -> None:
        """Looks into what came with an answer."""
        for name, value in (item for part in metadata for item in part or ()):
            if name == EPOCH_KEY and self._ring is not None and value != self._ring.metadata[0][1]:
                self._wanted = True

    def failed(self, asked: int | str, error: KvError) -> None:
        """Whom `target` or `current` named gave `error`."""
        if isinstance(asked, int):
            super().failed(asked, error)
        if self._ring is None or isinstance(error, Overloaded):
            return
        if may_be_retried(error) or isinstance(error, DeadlineExceeded):
            if isinstance(asked, str):
                self._leaders.pop(asked, None)
            self._wanted = True

    def close(self) -> list[C]:
        """As of `Endpoints`."""
        self._leaders = {}
        return super().close()

    def _begin(self) -> None:
        """Has the ring asked for, unless that is going on or was a moment ago."""
        with self._lock:
            now = self._clock()
            if self.closed or self._learning or not (self._wanted or now >= self._old) or now < self._not_before:
                return
            self._learning = True
        self._start()

    def _start(self) -> None:
        """Has `_learn` run in the background."""
        raise NotImplementedError

    def _learned(self, ring: Ring | None) -> tuple[dict[str, C], list[C]]:
        """The answer, if there was one. Leaders to connect, and channels to close."""
        with self._lock:
            now = self._clock()
            same = ring is None or (self._ring is not None and ring.leaders == self._ring.leaders)
            self._pause = min(2 * self._pause, PAUSE_MAX_SECONDS) if same else PAUSE_FIRST_SECONDS
            self._not_before = now + self._pause
            if ring is None or self.closed:
                return {}, []
            self._ring, self._wanted, self._old = ring, False, now + RING_KEPT_SECONDS
            leading = dict.fromkeys(filter(None, ring.leaders))
            self._leaders = {address: stub for address, stub in self._leaders.items() if address in leading}
            # Not closed at once: calls may be under way.
            unused = [at for at in self._open if at not in self._addresses and at[0] not in leading]
            self._unused = {at: self._unused.get(at, now) for at in unused}
            old = [at for at in unused if now - self._unused[at] > UNUSED_SECONDS]
            missing = [each for each in leading if each not in self._leaders][: LEADERS_MAX - len(self._leaders)]
            return {each: self._at((each, False))[0] for each in missing}, [self._open.pop(at)[0] for at in old]

    def _connected(self, address: str, health: bytes) -> None:
        """The leader at `address` has said how it is."""
        with self._lock:
            if health == SERVING and not self.closed:
                self._leaders[address] = self._at((address, False))[1]
        self._wanted |= health != SERVING


class ThreadRouter(Router[grpc.Channel, KvServiceStub]):
    """Learns in a thread."""

    def _start(self) -> None:
        threading.Thread(target=self._learn, name="kvstore-ring", daemon=True).start()

    def _learn(self) -> None:
        try:
            connecting, closing = self._learned(self._ask())
            checks = {
                address: _health(channel).future(b"", timeout=CONNECT_SECONDS)
                for address, channel in connecting.items()
            }
            for address, check in checks.items():
                self._connected(address, b"" if check.exception() else check.result())
            for channel in closing:
                channel.close()
        except Exception:
            # Closing the client takes the channels away under this.
            if not self.closed:
                raise
        finally:
            self._learning = False

    def _ask(self) -> Ring | None:
        number, stub = self.current()
        try:
            return Ring(stub.GetRing(GetRingRequest(), timeout=RING_SECONDS))
        except grpc.RpcError as failure:
            self.failed(number, from_rpc(failure, write=False))
        except (IndexError, ValueError):
            pass  # Not a ring: as good as none.
        return None


class LoopRouter(Router[grpc.aio.Channel, S]):
    """Learns in a task of the event loop."""

    _task: asyncio.Task[None] | None = None

    def close(self) -> list[grpc.aio.Channel]:
        """As of `Endpoints`."""
        channels = super().close()
        if self._task is not None:
            self._task.cancel()
        return channels

    def _start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._learn())

    async def _learn(self) -> None:
        try:
            connecting, closing = self._learned(await self._ask())
            checks = {
                address: _health(channel)(b"", timeout=CONNECT_SECONDS) for address, channel in connecting.items()
            }
            for address, check in checks.items():
                try:
                    self._connected(address, await check)
                except grpc.RpcError:
                    self._connected(address, b"")
            for channel in closing:
                await channel.close()
        finally:
            self._learning = False

    async def _ask(self) -> Ring | None:
        number, stub = self.current()
        try:
            return Ring(await cast(Any, stub).GetRing(GetRingRequest(), timeout=RING_SECONDS))
        except grpc.RpcError as failure:
            self.failed(number, from_rpc(failure, write=False))
        except (IndexError, ValueError):
            pass  # Not a ring: as good as none.
        return None
