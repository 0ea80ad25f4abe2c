"""Scans: lazy, closed with the loop, taken up where they broke. Each test runs with both clients."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake import Act, Fake, fail, refuse, status

from kvstore import AsyncClient, DeadlineExceeded, InvalidArgument, KvError, Unavailable
from kvstore.v1 import kv_pb2

Open = Callable[..., Any]
Serve = Callable[..., Fake]


def stream(keys: str, *, then: str = "", **options: Any) -> Act:
    """Answers with `keys`, and breaks off with the code `then`."""

    def act(request: Any, context: Any) -> Iterator[kv_pb2.ScanResponse]:
        for key in keys:
            yield kv_pb2.ScanResponse(key=key, value="1", version=1)
        if then:
            fail(context, status(then, **options))

    return act


def test_a_scan_gives_every_key(open_client: Open, serve: Serve) -> None:
    server = serve(stream("abc"))
    scan = open_client(server).scan(prefix="p", start="a", end="z", limit=9, keys_only=True, consistency="stale")
    assert [item.key for item in scan] == ["a", "b", "c"]
    (request,) = server.requests
    assert request == kv_pb2.ScanRequest(
        prefix="p", start_key="a", end_key="z", limit=9, keys_only=True, consistency=kv_pb2.CONSISTENCY_STALE
    )


def test_leaving_the_loop_closes_the_stream(open_client: Open, serve: Serve) -> None:
    closed = threading.Event()

    def endless(request: Any, context: Any) -> Iterator[kv_pb2.ScanResponse]:
        context.add_callback(closed.set)
        while context.is_active():
            yield kv_pb2.ScanResponse(key="a", value="1", version=1)
            closed.wait(0.001)

    client = open_client(serve(endless))
    for item in client.scan():
        assert item.key == "a"
        break
    assert closed.wait(5)


def test_a_broken_scan_goes_on_behind_its_last_key(open_client: Open, serve: Serve) -> None:
    server = serve(stream("ab", then="UNAVAILABLE"), stream("bcd"))
    assert [item.key for item in open_client(server).scan(start="a", end="z")] == ["a", "b", "c", "d"]
    assert [(request.start_key, request.end_key) for request in server.requests] == [("a", "z"), ("b", "z")]


def test_a_broken_scan_goes_on_when_its_last_key_is_gone(open_client: Open, serve: Serve) -> None:
    server = serve(stream("ab", then="UNAVAILABLE"), stream("cde"))
    assert [item.key for item in open_client(server).scan(limit=4)] == ["a", "b", "c", "d"]


def test_a_broken_scan_keeps_its_limit(open_client: Open, serve: Serve) -> None:
    server = serve(stream("ab", then="UNAVAILABLE"), stream("bc"))
    assert [item.key for item in open_client(server).scan(limit=3)] == ["a", "b", "c"]
    assert [request.limit for request in server.requests] == [3, 2]


def test_a_broken_reverse_scan_goes_on_below_its_last_key(open_client: Open, serve: Serve) -> None:
    server = serve(stream("dc", then="UNAVAILABLE"), stream("ba"))
    assert [item.key for item in open_client(server).scan(start="a", end="e", reverse=True, limit=4)] == list("dcba")
    assert [(r.start_key, r.end_key, r.limit) for r in server.requests] == [("a", "e", 4), ("a", "c", 2)]


def test_a_scan_that_broke_behind_its_last_item_is_finished(open_client: Open, serve: Serve) -> None:
    server = serve(stream("ab", then="UNAVAILABLE"))
    assert [item.key for item in open_client(server).scan(limit=2)] == ["a", "b"]
    assert len(server.requests) == 1


def test_a_scan_moves_to_the_next_endpoint(open_client: Open, serve: Serve) -> None:
    first, second = serve(stream("a", then="UNAVAILABLE")), serve(stream("ab"))
    assert [item.key for item in open_client(first, second).scan()] == ["a", "b"]
    assert (len(first.requests), len(second.requests)) == (1, 1)


def test_a_refused_scan_is_not_repeated(open_client: Open, serve: Serve) -> None:
    server = serve(refuse("INVALID_ARGUMENT", "INVALID_RANGE"))
    with pytest.raises(InvalidArgument):
        list(open_client(server).scan())
    assert len(server.requests) == 1


def test_a_scan_whose_server_falls_silent_ends(open_client: Open, serve: Serve) -> None:
    released = threading.Event()

    def silent(request: Any, context: Any) -> Iterator[kv_pb2.ScanResponse]:
        yield kv_pb2.ScanResponse(key="a", value="1", version=1)
        released.wait(10)

    scan = open_client(serve(silent), timeout=0.3).scan()
    assert next(scan).key == "a"
    with pytest.raises(DeadlineExceeded, match=r"nothing for 0.3 seconds"):
        next(scan)
    released.set()


def test_a_reader_may_take_its_time(open_client: Open, serve: Serve) -> None:
    scan = open_client(serve(stream("ab")), timeout=0.2).scan()
    assert next(scan).key == "a"
    time.sleep(0.5)
    assert [item.key for item in scan] == ["b"]


def test_asyncio_a_reader_may_take_its_time(serve: Serve) -> None:
    async def story() -> None:
        async with AsyncClient(serve(stream("ab")).endpoint, timeout=0.2) as client:
            keys = []
            async for item in client.scan():
                keys.append(item.key)
                await asyncio.sleep(0.5)
            assert keys == ["a", "b"]

    asyncio.run(story())


def test_a_scan_with_a_timeout_ends_then_however_well_it_goes(open_client: Open, serve: Serve) -> None:
    def endless(request: Any, context: Any) -> Iterator[kv_pb2.ScanResponse]:
        for number in range(10**9):
            if not context.is_active():
                return
            yield kv_pb2.ScanResponse(key=f"{number:09}", value="1", version=1)

    with pytest.raises(DeadlineExceeded):
        for _ in open_client(serve(endless)).scan(timeout=0.3):
            pass


def test_a_broken_scan_ends_at_its_deadline(open_client: Open, serve: Serve) -> None:
    with pytest.raises(Unavailable):
        list(open_client(serve(stream("a", then="UNAVAILABLE", retry_after=0.2))).scan(timeout=0.7))


def test_a_scan_that_comes_no_further_gives_up(
    open_client: Open, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvstore._retry.WAIT_FIRST_SECONDS", 0.0001)
    server = serve(stream("a", then="UNAVAILABLE"))
    with pytest.raises(Unavailable):
        list(open_client(server).scan())
    assert len(server.requests) == 11


def test_a_stream_that_was_taken_up_has_the_whole_time_for_each_entry(open_client: Open, serve: Serve) -> None:
    gate = threading.Event()

    def late(request: Any, context: Any) -> Iterator[kv_pb2.ScanResponse]:
        # Leaves little of the first wait.
        gate.wait(0.8)
        return iter(stream("", then="UNAVAILABLE", reason="NO_LEADER")(request, context))

    def slow(request: Any, context: Any) -> Iterator[kv_pb2.ScanResponse]:
        yield kv_pb2.ScanResponse(key="a", value="1", version=1)
        gate.wait(0.8)
        yield kv_pb2.ScanResponse(key="b", value="1", version=1)

    assert [item.key for item in open_client(serve(late, slow), timeout=1.2).scan()] == ["a", "b"]


@pytest.mark.parametrize(("code", "reason"), [("DATA_LOSS", "CORRUPTION"), ("INTERNAL", "INTERNAL")])
def test_a_failure_that_stays_ends_a_scan(open_client: Open, serve: Serve, code: str, reason: str) -> None:
    server = serve(stream("ab", then=code, reason=reason))
    keys = []
    with pytest.raises(KvError) as caught:
        for item in open_client(server).scan():
            keys.append(item.key)
    assert (keys, caught.value.reason, len(server.requests)) == (["a", "b"], reason, 1)
