"""What tests ask for: a fake server, a client of either kind, or the running server of the conformance cases."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fake import CLIENTS, Act, Fake


@pytest.fixture(scope="session")
def endpoints() -> str:
    """KVSTORE_ENDPOINTS. Missing is a failure and no skip: a suite that ran nothing has shown nothing."""
    value = os.environ.get("KVSTORE_ENDPOINTS")
    if not value:
        pytest.fail("set KVSTORE_ENDPOINTS to a running server, as in http://127.0.0.1:9090")
    return value


@pytest.fixture(params=CLIENTS)
def open_client(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Opens a `Client`, and in a second run an `AsyncClient`, on fakes or addresses."""
    with ExitStack() as stack:

        def open_on(*endpoints: Fake | str, **options: Any) -> Any:
            names = [each if isinstance(each, str) else each.endpoint for each in endpoints]
            client = CLIENTS[request.param](names, **options)
            stack.callback(client.close)
            return client

        yield open_on


@pytest.fixture
def serve() -> Iterator[Callable[..., Fake]]:
    """Starts fakes; stops them after the test."""
    with ExitStack() as stack:

        def start(*acts: Act) -> Fake:
            fake = Fake(*acts)
            stack.callback(fake.stop)
            return fake

        yield start


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries at once, so that their number ends a call and never the deadline."""
    monkeypatch.setattr("kvstore._retry.WAIT_FIRST_SECONDS", 0.0)
