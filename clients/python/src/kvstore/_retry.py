"""When a failed call is tried again: the attempts of one call under one deadline. It neither calls nor sleeps."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from kvstore.errors import KvError, OutcomeUnknown, Overloaded, Unavailable

RETRIES_MAX = 10
WAIT_FIRST_SECONDS = 0.05
WAIT_MAX_SECONDS = 2.0


def may_be_retried(error: KvError) -> bool:
    """Whether another attempt may help and is safe. Every write carries a request id, so that it is applied once."""
    return isinstance(error, (Unavailable, Overloaded, OutcomeUnknown))


class Attempts:
    """The attempts of one call, or of one step of a walk when every step has `timeout` anew."""

    def __init__(
        self,
        timeout: float,
        *,
        renewed: bool = False,
        clock: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._jitter = jitter
        self._timeout = timeout
        self._renewed = renewed
        self._deadline = clock() + timeout
        self._retries = 0
        self._unknown: OutcomeUnknown | None = None

    def time_left(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._deadline - self._clock())

    def wait_after(self, error: KvError) -> float:
        """Seconds to wait before the next attempt. Raises what the call has come to when there is none."""
        if not may_be_retried(error):
            # Certain also after an attempt with an unknown outcome: had that been applied, its request id would have answered.
            raise error
        if isinstance(error, OutcomeUnknown):
            self._unknown = error
        window = min(WAIT_MAX_SECONDS, WAIT_FIRST_SECONDS * (1 << self._retries))
        wait = max(self._jitter() * window, error.retry_after)
        if self._retries == RETRIES_MAX or wait >= self.time_left():
            # "Certainly not applied" is true of the last attempt only.
            raise self._unknown or error
        self._retries += 1
        return wait

    def step(self) -> None:
        """A walk has come further: its next step has all retries again."""
        self._retries = 0
        if self._renewed:
            self._deadline = self._clock() + self._timeout
