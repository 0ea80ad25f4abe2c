"""Sessions: a bounded window, an answer for every operation, and what becomes of them when the stream breaks."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from fake import Fake, fail, status

from kvstore import AsyncClient, Client, OutcomeUnknown, Unavailable, VersionMismatch
from kvstore.v1.kv_pb2 import GetResponse, PutResponse, SessionRequest, SessionResponse

Serve = Callable[..., Fake]


def respond(request: SessionRequest) -> SessionResponse:
    """Stores everything, has nothing, and finds no version right."""
    if request.WhichOneof("operation") == "get":
        return SessionResponse(id=request.id, status=status("NOT_FOUND", "KEY_NOT_FOUND"))
    if request.put.HasField("if_version"):
        return SessionResponse(id=request.id, status=status("ABORTED", "VERSION_MISMATCH", actual="4"))
    return SessionResponse(id=request.id, put=PutResponse(version=request.id))


def respond_to_all(requests: Iterator[SessionRequest], context: Any) -> Iterator[SessionResponse]:
    return map(respond, requests)


class Held:
    """Takes operations and answers them, the last first, when it is released."""

    def __init__(self) -> None:
        self.taken: list[SessionRequest] = []
        self.arrived = threading.Semaphore(0)
        self.released = threading.Event()

    def __call__(self, requests: Iterator[SessionRequest], context: Any) -> Iterator[SessionResponse]:
        def take() -> None:
            with suppress(grpc.RpcError):  # The client has gone.
                for request in requests:
                    self.taken.append(request)
                    self.arrived.release()

        taking = threading.Thread(target=take, daemon=True)
        taking.start()
        while context.is_active() and (self.taken or taking.is_alive()):
            if self.released.wait(0.01):
                taking.join(0.01)
                while self.taken:
                    yield respond(self.taken.pop())


def break_after(count: int, code: str, reason: str = "") -> Any:
    """Takes `count` operations and ends the stream without an answer."""

    def act(requests: Iterator[SessionRequest], context: Any) -> Iterator[SessionResponse]:
        for _ in range(count):
            next(requests)
        fail(context, status(code, reason))

    return act


def test_every_operation_is_answered_through_its_future(serve: Serve) -> None:
    with Client(serve(respond_to_all).endpoint) as client, client.session() as session:
        versions = [session.put(f"k{number}", number) for number in range(1_000)]
        missing = session.get("missing")
        refused = session.put("a", 1, if_version=3)
        assert [version.result(5) for version in versions] == list(range(1, 1_001))
        assert missing.result(5) is None
        error = refused.exception(5)
    assert isinstance(error, VersionMismatch)
    assert error.metadata == {"actual": "4"}


def test_answers_may_come_in_any_order(serve: Serve) -> None:
    held = Held()
    with Client(serve(held).endpoint) as client, client.session() as session:
        futures = [session.put(f"k{number}", number) for number in range(10)]
        for _ in futures:
            assert held.arrived.acquire(timeout=5)
        held.released.set()
        assert [future.result(5) for future in futures] == list(range(1, 11))


def test_at_the_window_the_next_operation_waits(serve: Serve) -> None:
    held = Held()
    with Client(serve(held).endpoint) as client, client.session(window=4) as session:
        for number in range(4):
            session.put("a", number)
            assert held.arrived.acquire(timeout=5)
        started = threading.Event()
        fifth: list[Any] = []

        def start() -> None:
            fifth.append(session.put("a", 5))
            started.set()

        waiting = threading.Thread(target=start)
        waiting.start()
        assert not held.arrived.acquire(timeout=0.2)
        assert not started.is_set()
        held.released.set()
        assert started.wait(5)
        assert fifth[0].result(5) == 5
        waiting.join()


def test_leaving_the_block_with_an_exception_waits_for_nothing(serve: Serve) -> None:
    held = Held()
    with Client(serve(held).endpoint) as client:
        with pytest.raises(ZeroDivisionError), client.session() as session:
            future = session.put("a", 1)
            assert held.arrived.acquire(timeout=5)
            raise ZeroDivisionError
        assert isinstance(future.exception(5), OutcomeUnknown)


def test_leaving_the_block_waits_for_all_answers(serve: Serve) -> None:
    with Client(serve(respond_to_all).endpoint) as client:
        with client.session(window=10) as session:
            futures = [session.put("a", number) for number in range(100)]
        assert all(future.done() for future in futures)
        with pytest.raises(RuntimeError, match="closed"):
            session.put("a", 1)


def test_a_broken_stream_leaves_writes_unknown_and_reads_unavailable(serve: Serve) -> None:
    server = serve(break_after(2, "UNAVAILABLE"))
    with Client(server.endpoint) as client:
        session = client.session()
        write, read = session.put("a", 1), session.get("a")
        assert isinstance(write.exception(5), OutcomeUnknown)
        assert isinstance(read.exception(5), Unavailable)
        with pytest.raises(Unavailable, match="nothing was sent"):
            session.put("a", 1)
        with pytest.raises(Unavailable):
            session.close()


def test_a_stopping_server_says_that_nothing_was_started(serve: Serve) -> None:
    server = serve(break_after(1, "UNAVAILABLE", "NOT_SERVING"))
    with Client(server.endpoint) as client:
        session = client.session()
        error = session.put("a", 1).exception(5)
    assert isinstance(error, Unavailable)
    assert error.reason == "NOT_SERVING"


def test_after_a_broken_session_the_next_goes_to_the_next_endpoint(serve: Serve) -> None:
    broken, whole = serve(break_after(1, "UNAVAILABLE")), serve(respond_to_all)
    with Client([broken.endpoint, whole.endpoint]) as client:
        client.session().put("a", 1).exception(5)
        with client.session() as session:
            assert session.put("a", 1).result(5) == 1


def test_a_stream_that_ends_early_fails_what_it_left(serve: Serve) -> None:
    with Client(serve(lambda requests, context: iter(())).endpoint) as client:
        session = client.session()
        with pytest.raises((OutcomeUnknown, Unavailable)):
            session.put("a", 1).result(5)


def test_closing_the_client_fails_what_is_in_flight(serve: Serve) -> None:
    held = Held()
    client = Client(serve(held).endpoint)
    future = client.session().put("a", 1)
    assert held.arrived.acquire(timeout=5)
    client.close()
    assert isinstance(future.exception(5), OutcomeUnknown)


def test_a_window_has_room_for_one(serve: Serve) -> None:
    with Client(serve(respond_to_all).endpoint) as client, pytest.raises(ValueError, match="at least 1"):
        client.session(window=0)


def test_asyncio_every_operation_is_awaited(serve: Serve) -> None:
    async def story() -> None:
        async with AsyncClient(serve(respond_to_all).endpoint) as client, client.session(window=16) as session:
            versions = await asyncio.gather(*(session.put(f"k{number}", number) for number in range(1_000)))
            assert sorted(versions) == list(range(1, 1_001))
            assert await session.get("missing") is None
            with pytest.raises(VersionMismatch):
                await session.put("a", 1, if_version=3)

    asyncio.run(story())


def test_asyncio_at_the_window_the_next_operation_waits(serve: Serve) -> None:
    held = Held()

    async def story() -> None:
        async with AsyncClient(serve(held).endpoint) as client:
            session = client.session(window=4)
            tasks = [asyncio.create_task(session.put("a", number)) for number in range(5)]
            for _ in range(4):
                assert await asyncio.to_thread(held.arrived.acquire, timeout=5)
            assert not await asyncio.to_thread(held.arrived.acquire, timeout=0.2)
            held.released.set()
            assert sorted(await asyncio.gather(*tasks)) == [1, 2, 3, 4, 5]

    asyncio.run(story())


def test_asyncio_an_abandoned_operation_keeps_its_place_in_the_window(serve: Serve) -> None:
    held = Held()

    async def story() -> None:
        async with AsyncClient(serve(held).endpoint) as client:
            session = client.session(window=1)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(session.put("a", 1), 0.1)
            second = asyncio.create_task(session.put("a", 2))
            assert await asyncio.to_thread(held.arrived.acquire, timeout=5)
            assert not await asyncio.to_thread(held.arrived.acquire, timeout=0.1)
            held.released.set()
            assert await second == 2

    asyncio.run(story())


def test_asyncio_a_broken_stream_leaves_writes_unknown_and_reads_unavailable(serve: Serve) -> None:
    server = serve(break_after(2, "UNAVAILABLE"))

    async def story() -> None:
        async with AsyncClient(server.endpoint) as client:
            session = client.session()
            write, read = await asyncio.gather(session.put("a", 1), session.get("a"), return_exceptions=True)
            assert isinstance(write, OutcomeUnknown)
            assert isinstance(read, Unavailable)
            with pytest.raises(Unavailable, match="nothing was sent"):
                await session.put("a", 1)
            with pytest.raises(Unavailable):
                await session.close()

    asyncio.run(story())


def test_asyncio_those_who_wait_for_the_window_fail_with_the_stream(serve: Serve) -> None:
    server = serve(break_after(2, "UNAVAILABLE"))

    async def story() -> None:
        async with AsyncClient(server.endpoint) as client:
            session = client.session(window=2)
            writes = [session.put("a", number) for number in range(6)]
            outcomes = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), 5)
            assert [type(outcome) for outcome in outcomes] == [OutcomeUnknown] * 2 + [Unavailable] * 4

    asyncio.run(story())


def test_asyncio_closing_the_client_fails_what_is_in_flight(serve: Serve) -> None:
    held = Held()

    async def story() -> None:
        client = AsyncClient(serve(held).endpoint)
        write = asyncio.create_task(client.session().put("a", 1))
        assert await asyncio.to_thread(held.arrived.acquire, timeout=5)
        await client.close()
        with pytest.raises(OutcomeUnknown):
            await asyncio.wait_for(write, 5)

    asyncio.run(story())


def test_what_an_entry_carries_comes_through(serve: Serve) -> None:
    def act(requests: Iterator[SessionRequest], context: Any) -> Iterator[SessionResponse]:
        for request in requests:
            yield SessionResponse(id=request.id, get=GetResponse(key="a", raw=b"\xff", version=3, ttl=9))

    with Client(serve(act).endpoint) as client, client.session() as session:
        entry = session.get("a").result(5)
    assert entry is not None
    assert (entry.raw, entry.text, entry.version, entry.ttl) == (b"\xff", None, 3, 9)
