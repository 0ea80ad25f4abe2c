"""Failover, retries, deadlines and what a failed call is said to have done. Each test runs with both clients."""

import socket
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from fake import Fake, answer, fail, items, refuse, status

from kvstore import (
    Client,
    Corruption,
    DeadlineExceeded,
    InvalidArgument,
    KvError,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    VersionMismatch,
)
from kvstore.v1 import kv_pb2

Open = Callable[..., Any]
Serve = Callable[..., Fake]

STORED = answer(kv_pb2.PutResponse(version=7))
FOUND = answer(kv_pb2.GetResponse(key="a", value="1", version=7))


def nobody() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def silent() -> Any:
    """An address that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_dead_endpoint_is_passed_over(open_client: Open, serve: Serve) -> None:
    alive = serve(STORED)
    assert open_client(nobody(), alive).put("a", 1) == 7
    assert len(alive.requests) == 1


def test_calls_stay_with_the_endpoint_that_answered_last(open_client: Open, serve: Serve) -> None:
    starting, ready = serve(refuse("UNAVAILABLE", "NOT_SERVING")), serve(STORED)
    client = open_client(starting, ready)
    for _ in range(3):
        client.put("a", 1)
    assert (len(starting.requests), len(ready.requests)) == (1, 3)


def test_after_the_last_endpoint_comes_the_first(open_client: Open, serve: Serve) -> None:
    first = serve(refuse("UNAVAILABLE", "NO_LEADER"), STORED)
    second = serve(refuse("UNAVAILABLE", "NO_LEADER"))
    assert open_client(first, second).put("a", 1) == 7
    assert (len(first.requests), len(second.requests)) == (2, 1)


@pytest.mark.parametrize(
    "failure",
    [
        refuse("UNAVAILABLE", "NO_LEADER"),
        refuse("UNAVAILABLE"),
        refuse("RESOURCE_EXHAUSTED", "OVERLOADED"),
        refuse("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN"),
        refuse("CANCELLED"),
        refuse("INTERNAL"),
    ],
)
def test_a_write_is_repeated_with_its_request_id(open_client: Open, serve: Serve, failure: Any) -> None:
    server = serve(failure, failure, STORED)
    assert open_client(server).put("a", 1) == 7
    ids = {request.request_id for request in server.requests}
    assert len(server.requests) == 3
    assert len(ids) == 1
    assert len(ids.pop()) == 32


def test_every_write_has_an_id_of_its_own_unless_the_caller_gives_one(open_client: Open, serve: Serve) -> None:
    server = serve(STORED)
    client = open_client(server)
    client.put("a", 1)
    client.put("a", 1)
    client.put("a", 1, request_id="mine")
    first, second, third = (request.request_id for request in server.requests)
    assert first != second
    assert third == "mine"


def test_deletes_and_batches_carry_ids_too(open_client: Open, serve: Serve) -> None:
    gone, stored = answer(kv_pb2.DeleteResponse(deleted=True)), answer(kv_pb2.BatchPutResponse(count=1))
    server = serve(refuse("UNAVAILABLE"), gone, refuse("UNAVAILABLE"), stored)
    client = open_client(server)
    assert client.delete("a") is True
    assert client.batch_put({"a": 1}) == 1
    ids = [request.request_id for request in server.requests]
    assert ids[0] == ids[1] != ids[2] == ids[3] != ""


def test_the_server_says_how_long_to_wait(open_client: Open, serve: Serve) -> None:
    server = serve(refuse("RESOURCE_EXHAUSTED", "OVERLOADED", retry_after=0.3), STORED)
    began = time.monotonic()
    open_client(server).put("a", 1)
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        ("INVALID_ARGUMENT", "INVALID_JSON", InvalidArgument),
        ("INVALID_ARGUMENT", "LIMIT_EXCEEDED", InvalidArgument),
        ("ABORTED", "VERSION_MISMATCH", VersionMismatch),
        ("DATA_LOSS", "CORRUPTION", Corruption),
        ("ABORTED", "ANOTHER", KvError),
        ("INTERNAL", "INTERNAL", KvError),
        ("UNAUTHENTICATED", "", KvError),
    ],
)
def test_a_refusal_is_final(open_client: Open, serve: Serve, code: str, reason: str, kind: type[KvError]) -> None:
    server = serve(refuse(code, reason, expected="1", actual="2"))
    with pytest.raises(KvError) as caught:
        open_client(server).put("a", 1)
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert caught.value.metadata == ({"expected": "1", "actual": "2"} if reason else {})
    assert caught.value.message == f"{code} {reason}"
    assert len(server.requests) == 1


@pytest.mark.usefixtures("no_waits")
def test_a_reason_of_somebody_else_is_no_reason(open_client: Open, serve: Serve) -> None:
    foreign = status("UNAVAILABLE", "NO_LEADER")
    foreign.details[0].value = foreign.details[0].value.replace(b"kvstore", b"another")
    server = serve(lambda request, context: fail(context, foreign))
    with pytest.raises(OutcomeUnknown) as caught:
        open_client(server).put("a", 1)
    assert caught.value.reason == ""


def test_the_deadline_ends_the_retries(open_client: Open, serve: Serve) -> None:
    server = serve(refuse("UNAVAILABLE", "NO_LEADER", retry_after=0.2))
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        open_client(server, timeout=0.9).put("a", 1)
    assert time.monotonic() - began < 5
    assert caught.value.reason == "NO_LEADER"
    assert 1 < len(server.requests) < 6


def test_every_attempt_gets_what_is_left_of_the_deadline(open_client: Open, serve: Serve) -> None:
    server = serve(*[refuse("UNAVAILABLE", "NO_LEADER", retry_after=0.1)] * 3, STORED)
    open_client(server).put("a", 1, timeout=3)
    left = [each for each in server.times_left if each is not None]
    assert left[0] <= 3.1
    # Half of the wait, because the header is rounded.
    assert all(later <= earlier - 0.05 for earlier, later in pairwise(left))


@pytest.mark.usefixtures("no_waits")
def test_ten_retries_are_enough(open_client: Open, serve: Serve) -> None:
    server = serve(refuse("UNAVAILABLE", "NO_QUORUM"))
    with pytest.raises(Unavailable):
        open_client(server, timeout=30).put("a", 1)
    assert len(server.requests) == 11


@pytest.mark.parametrize(
    ("code", "called", "read"),
    [
        ("UNAVAILABLE", "UNAVAILABLE", Unavailable),
        ("CANCELLED", "UNAVAILABLE", Unavailable),
        ("UNKNOWN", "UNAVAILABLE", Unavailable),
        ("INTERNAL", "UNAVAILABLE", Unavailable),
        ("ABORTED", "UNAVAILABLE", Unavailable),
        ("RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED", Overloaded),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", DeadlineExceeded),
    ],
)
@pytest.mark.usefixtures("no_waits")
def test_a_bare_failure_of_the_transport_is_one_whatever_it_is_called(
    open_client: Open, serve: Serve, code: str, called: str, read: type[KvError]
) -> None:
    client = open_client(serve(refuse(code)))
    with pytest.raises(OutcomeUnknown) as written:
        client.put("a", 1)
    with pytest.raises(read) as missed:
        client.get("a")
    for caught in (written, missed):
        assert (caught.value.code, caught.value.reason) == (called, "")


@pytest.mark.usefixtures("no_waits")
def test_nobody_there_leaves_a_write_unknown_and_a_read_unavailable(open_client: Open) -> None:
    client = open_client(nobody())
    with pytest.raises(OutcomeUnknown):
        client.put("a", 1)
    with pytest.raises(Unavailable):
        client.get("a")


@pytest.mark.parametrize(
    ("code", "reason", "attempts"),
    [
        ("UNAVAILABLE", "NO_LEADER", 11),
        ("RESOURCE_EXHAUSTED", "OVERLOADED", 11),
        ("UNAUTHENTICATED", "UNAUTHENTICATED", 2),
        ("PERMISSION_DENIED", "PERMISSION_DENIED", 2),
        ("INTERNAL", "INTERNAL", 2),
        ("DATA_LOSS", "CORRUPTION", 2),
        ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", 2),
        # The store has not said these.
        ("INVALID_ARGUMENT", "", 2),
        ("FAILED_PRECONDITION", "", 2),
    ],
)
@pytest.mark.usefixtures("no_waits")
def test_an_unknown_outcome_stays_unknown(
    open_client: Open, serve: Serve, code: str, reason: str, attempts: int
) -> None:
    server = serve(refuse("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN"), refuse(code, reason))
    with pytest.raises(OutcomeUnknown) as caught:
        open_client(server).put("a", 1)
    assert (caught.value.code, caught.value.reason) == ("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN")
    assert isinstance(caught.value.__cause__, KvError)
    assert (caught.value.__cause__.code, caught.value.__cause__.reason) == (code, reason)
    assert len(server.requests) == attempts
    assert len({request.request_id for request in server.requests}) == 1


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        ("ABORTED", "VERSION_MISMATCH", VersionMismatch),
        ("INVALID_ARGUMENT", "LIMIT_EXCEEDED", InvalidArgument),
        ("FAILED_PRECONDITION", "READ_ONLY", KvError),
    ],
)
def test_an_unknown_outcome_is_settled_by_an_answer_about_the_request(
    open_client: Open, serve: Serve, code: str, reason: str, kind: type[KvError]
) -> None:
    server = serve(refuse("UNAVAILABLE"), refuse(code, reason))
    with pytest.raises(KvError) as caught:
        open_client(server).put("a", 1, if_version=3)
    assert type(caught.value) is kind
    assert len({request.request_id for request in server.requests}) == 1


def test_an_unknown_outcome_is_settled_by_success(open_client: Open, serve: Serve) -> None:
    server = serve(refuse("DEADLINE_EXCEEDED", "OUTCOME_UNKNOWN"), STORED)
    assert open_client(server).put("a", 1) == 7


def test_a_read_is_repeated(open_client: Open, serve: Serve) -> None:
    server = serve(refuse("UNAVAILABLE"), refuse("RESOURCE_EXHAUSTED", "OVERLOADED"), FOUND)
    assert open_client(server).get("a").json() == 1


@pytest.mark.usefixtures("no_waits")
def test_overload_to_the_end_is_overload(open_client: Open, serve: Serve) -> None:
    with pytest.raises(Overloaded):
        open_client(serve(refuse("RESOURCE_EXHAUSTED", "OVERLOADED"))).get("a")


def test_the_callers_own_deadline_is_not_retried(open_client: Open, silent: str) -> None:
    client = open_client(silent)
    began = time.monotonic()
    with pytest.raises(OutcomeUnknown):
        client.put("a", 1, timeout=0.3)
    with pytest.raises(DeadlineExceeded):
        client.get("a", timeout=0.3)
    assert time.monotonic() - began < 5


def test_an_endpoint_that_never_says_hello_is_passed_over(open_client: Open, serve: Serve, silent: str) -> None:
    # Connecting takes at most a second, so that the call's deadline is not spent on it.
    assert open_client(silent, serve(STORED)).put("a", 1) == 7


def test_a_slow_server_is_left_after_the_deadline(open_client: Open, serve: Serve) -> None:
    released = threading.Event()
    slow, quick = serve(lambda request, context: released.wait(10)), serve(FOUND)
    client = open_client(slow, quick)
    with pytest.raises(DeadlineExceeded):
        client.get("a", timeout=0.3)
    released.set()
    assert client.get("a", timeout=0.3).version == 7


def test_a_missing_key_is_no_value(open_client: Open, serve: Serve) -> None:
    server = serve(refuse("NOT_FOUND", "KEY_NOT_FOUND"))
    assert open_client(server).get("a") is None
    assert len(server.requests) == 1


def test_a_page_is_repeated_and_the_range_goes_on(open_client: Open, serve: Serve) -> None:
    first = kv_pb2.RangeResponse(items=items("ab"), next_page_token="t")
    server = serve(answer(first), refuse("UNAVAILABLE"), answer(kv_pb2.RangeResponse(items=items("c"))))
    assert [item.key for item in open_client(server).range(prefix="")] == ["a", "b", "c"]
    assert [request.page_token for request in server.requests] == ["", "t", "t"]


@pytest.mark.parametrize(
    ("limit", "page_size", "asked"),
    [(None, None, [None, None]), (2_000, None, [None, None]), (2, None, [2, 1]), (None, 5, [5, 5]), (2, 1, [1, 1])],
)
def test_a_page_is_no_larger_than_is_wanted(
    open_client: Open, serve: Serve, limit: int | None, page_size: int | None, asked: list[int | None]
) -> None:
    first = kv_pb2.RangeResponse(items=items("a"), next_page_token="t")
    server = serve(answer(first), answer(kv_pb2.RangeResponse(items=items("b"))))
    assert len(list(open_client(server).range(limit=limit, page_size=page_size))) == 2
    assert [each.limit if each.HasField("limit") else None for each in server.requests] == asked


def test_a_servers_large_pages_do_not_exceed_the_limit(open_client: Open, serve: Serve) -> None:
    page = kv_pb2.RangeResponse(items=items(f"{number}" for number in range(700)), next_page_token="more")
    assert len(list(open_client(serve(answer(page))).range(limit=1_300))) == 1_300


def test_a_range_fetches_a_page_only_when_it_is_needed(open_client: Open, serve: Serve) -> None:
    server = serve(answer(kv_pb2.RangeResponse(items=items("ab"), next_page_token="t")))
    found = open_client(server).range()
    assert [next(found).key, next(found).key] == ["a", "b"]
    assert len(server.requests) == 1
    found.close()


def test_a_closed_client_refuses_calls(serve: Serve) -> None:
    with Client(serve(STORED).endpoint) as client:
        client.put("a", 1)
    with pytest.raises(RuntimeError, match="closed"):
        client.put("a", 1)


def test_closing_a_client_leaves_a_write_under_way_unknown(silent: str) -> None:
    client = Client(silent, timeout=10)
    outcome: list[BaseException] = []

    def write() -> None:
        try:
            client.put("a", 1)
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    deadline = time.monotonic() + 5
    while not client._endpoints._open and time.monotonic() < deadline:
        time.sleep(0.01)
    client.close()
    thread.join(5)
    assert [type(error) for error in outcome] in ([OutcomeUnknown], [RuntimeError])
