"""The servers of a client: their addresses, one channel each, and which of them is asked next."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar
from urllib.parse import urlsplit

from kvstore._retry import may_be_retried
from kvstore.errors import DeadlineExceeded, KvError

DEFAULT = "http://127.0.0.1:9090"
VARIABLE = "KVSTORE_ENDPOINTS"

OPTIONS: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that is back is found within the time that a call has for its retries; gRPC would wait up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Despite its name, how long connecting may take. gRPC's 20 s would spend the whole deadline on a host that is gone.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    # Pages and batches are bounded by the server: 4 MiB by default, which gRPC's own default would refuse.
    ("grpc.max_receive_message_length", 64 << 20),
    # Retries are this package's.
    ("grpc.enable_retries", 0),
]

C = TypeVar("C")
S = TypeVar("S")


def parse(endpoints: str | Sequence[str] | None) -> list[tuple[str, bool]]:
    """Addresses as `host:port` and whether they want TLS."""
    if endpoints is None:
        endpoints = os.environ.get(VARIABLE) or DEFAULT
    if isinstance(endpoints, str):
        endpoints = [part.strip() for part in endpoints.split(",")]
    if not endpoints:
        raise ValueError("no endpoint was given; give at least one http://host:port")
    return [_parse_one(endpoint) for endpoint in endpoints]


def _parse_one(endpoint: str) -> tuple[str, bool]:
    parts = urlsplit(endpoint if "://" in endpoint else f"http://{endpoint}")
    try:
        complete = bool(parts.hostname and parts.port and parts.path in ("", "/") and parts.scheme in ("http", "https"))
    except ValueError:  # The port is no number.
        complete = False
    if not complete or parts.query or parts.fragment or parts.username:
        raise ValueError(
            f"endpoint {endpoint!r} is not understood; write http://host:port, https://host:port or host:port"
        )
    return parts.netloc, parts.scheme == "https"


class Endpoints(Generic[C, S]):
    """Opens channels at first use. The endpoint that answered last is asked first; after a failure, the next one."""

    def __init__(
        self, endpoints: str | Sequence[str] | None, connect: Callable[[str, bool], C], stub: Callable[[C], S]
    ) -> None:
        self._addresses = parse(endpoints)
        self._connect, self._stub = connect, stub
        self._lock = threading.Lock()
        #: Channels with their stubs, by address as in `parse`.
        self._open: dict[tuple[str, bool], tuple[C, S]] = {}
        self._next = 0
        #: Whether `close` was called.
        self.closed = False

    def current(self) -> tuple[int, S]:
        """The endpoint to ask, by number, and its stub."""
        with self._lock:
            if self.closed:
                raise RuntimeError("the client is closed")
            return self._next, self._at(self._addresses[self._next])[1]

    def _at(self, address: tuple[str, bool]) -> tuple[C, S]:
        """The channel to `address` and its stub; called with the lock."""
        if address not in self._open:
            channel = self._connect(*address)
            self._open[address] = (channel, self._stub(channel))
        return self._open[address]

    def failed(self, number: int, error: KvError) -> None:
        """Endpoint `number` gave `error`. If that may help, the next is asked, unless another call has moved on already."""
        with self._lock:
            if self._next == number and (may_be_retried(error) or isinstance(error, DeadlineExceeded)):
                self._next = (number + 1) % len(self._addresses)

    def close(self) -> list[C]:
        """Refuses further calls; gives the channels that are to be closed."""
        with self._lock:
            self.closed = True
            channels = [channel for channel, _ in self._open.values()]
            self._open.clear()
            return channels
