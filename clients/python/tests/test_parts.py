"""The parts that need no server: waits, addresses, values, errors."""

import os
import pickle
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from kvstore import AsyncClient, Client, Entry, KvError, OutcomeUnknown, Unavailable, VersionMismatch
from kvstore._endpoints import parse
from kvstore._operations import encode
from kvstore._retry import Attempts

LATER = Unavailable("later", "UNAVAILABLE", "NO_LEADER")


class Clock:
    """A clock that stands until it is told to go on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def attempts(timeout: float, *, jitter: float = 1.0, clock: Clock | None = None, renewed: bool = False) -> Attempts:
    return Attempts(timeout, renewed=renewed, clock=clock or Clock(), jitter=lambda: jitter)


def test_the_window_of_a_wait_doubles_up_to_2_seconds() -> None:
    call = attempts(1_000)
    waits = [call.wait_after(LATER) for _ in range(10)]
    assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2, 2])
    with pytest.raises(Unavailable):
        call.wait_after(LATER)


def test_a_wait_is_anywhere_in_its_window() -> None:
    assert attempts(5, jitter=0.0).wait_after(LATER) == 0
    assert attempts(5, jitter=0.5).wait_after(LATER) == pytest.approx(0.025)


def test_the_server_may_ask_for_a_longer_wait() -> None:
    patient = Unavailable("later", "UNAVAILABLE", "NO_LEADER", None, 1.5)
    assert attempts(5).wait_after(patient) == 1.5


def test_a_wait_that_would_pass_the_deadline_ends_the_call_at_once() -> None:
    clock = Clock()
    call = attempts(5, clock=clock)
    assert call.time_left() == 5
    clock.now += 4.96
    with pytest.raises(Unavailable):
        call.wait_after(LATER)
    clock.now += 10
    assert call.time_left() == 0


def test_every_step_of_a_walk_has_the_whole_time_and_all_retries() -> None:
    clock = Clock()
    walk = attempts(1_000, clock=clock, renewed=True)
    for _ in range(10):
        walk.wait_after(LATER)
    clock.now += 900
    walk.step()
    assert walk.time_left() == 1_000
    assert walk.wait_after(LATER) == pytest.approx(0.05)


def test_a_walk_with_a_deadline_of_its_own_keeps_it() -> None:
    clock = Clock()
    walk = attempts(1_000, clock=clock)
    clock.now += 900
    walk.step()
    assert walk.time_left() == 100


def test_the_last_word_on_a_write_is_the_attempt_that_is_unknown() -> None:
    call = attempts(1, jitter=0.0)
    lost = OutcomeUnknown("lost", "UNAVAILABLE")
    call.wait_after(lost)
    with pytest.raises(OutcomeUnknown) as caught:
        for _ in range(10):
            call.wait_after(LATER)
    assert caught.value is lost
    mismatch = VersionMismatch("no", "ABORTED", "VERSION_MISMATCH")
    with pytest.raises(VersionMismatch):
        call.wait_after(mismatch)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_timeout_is_above_0_and_finite(timeout: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and finite"):
        Client("127.0.0.1:1", timeout=timeout)
    with pytest.raises(ValueError, match="must be above 0 and finite"), Client("127.0.0.1:1") as client:
        client.get("a", timeout=timeout)


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        (["http://127.0.0.1:9090"], [("127.0.0.1:9090", False)]),
        (["n1:9090", "http://n2:9091/"], [("n1:9090", False), ("n2:9091", False)]),
        ("n1:9090, n2:9090", [("n1:9090", False), ("n2:9090", False)]),
        (["https://kv.example:443"], [("kv.example:443", True)]),
        (["[::1]:9090"], [("[::1]:9090", False)]),
    ],
)
def test_endpoints_are_understood(given: str | list[str], addresses: list[tuple[str, bool]]) -> None:
    assert parse(given) == addresses


@pytest.mark.parametrize(
    "given", ["n1", "n1:port", "n1:99999", "ftp://n1:1", "http://n1:1/path", "http://u@n1:1", "", ":9090", "a:1,,b:2"]
)
def test_an_endpoint_that_is_not_understood_is_named(given: str) -> None:
    with pytest.raises(ValueError, match=r"write http://host:port"):
        Client(given)


def test_no_endpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Client([])


def test_the_environment_names_the_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVSTORE_ENDPOINTS", "http://n1:1,n2:2")
    assert parse(None) == [("n1:1", False), ("n2:2", False)]
    monkeypatch.delenv("KVSTORE_ENDPOINTS")
    assert parse(None) == [("127.0.0.1:9090", False)]


def test_values_become_compact_json() -> None:
    assert encode({"a": [1, None, "ü"]}) == '{"a":[1,null,"ü"]}'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", object()])
def test_what_json_cannot_express_is_refused_before_it_is_sent(value: object) -> None:
    with pytest.raises((ValueError, TypeError)), Client("127.0.0.1:1") as client:
        client.put("a", value)


def test_an_unknown_consistency_is_refused_with_what_exists() -> None:
    with pytest.raises(ValueError, match="use one of linearizable, stale, lease"), Client("127.0.0.1:1") as client:
        client.get("a", consistency="strong")  # type: ignore[arg-type]


def test_an_entry_tells_why_it_has_no_json() -> None:
    assert Entry("a", 1, text='{"x": 1}').json() == {"x": 1}
    with pytest.raises(ValueError, match="raw bytes"):
        Entry("a", 1, raw=b"").json()
    with pytest.raises(ValueError, match="without its value"):
        Entry("a", 1).json()


def test_an_entry_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        Entry("a", 1).key = "b"  # type: ignore[misc]


def test_errors_tell_their_reason_and_survive_pickling() -> None:
    error = VersionMismatch("the version is 4", "ABORTED", "VERSION_MISMATCH", {"actual": "4"})
    assert str(error) == "VERSION_MISMATCH: the version is 4"
    assert str(KvError("reset", "UNAVAILABLE")) == "UNAVAILABLE: reset"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is VersionMismatch
    assert (again.code, again.reason, again.metadata) == ("ABORTED", "VERSION_MISMATCH", {"actual": "4"})


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert methods(Client) == methods(AsyncClient)


def test_the_package_runs_without_the_c_implementation_of_protobuf() -> None:
    script = "from kvstore.v1 import kv_pb2 as k; print(k.PutRequest.FromString(k.PutRequest(key='a').SerializeToString()).key)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.fullmatch("a\n", done.stdout)
