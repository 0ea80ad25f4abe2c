"""When a failed call is tried again: the attempts of one call under one deadline. It neither calls nor sleeps."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable

from kvstore.errors import KvError, OutcomeUnknown, Overloaded, Unavailable, VersionMismatch

RETRIES_MAX = 10
WAIT_FIRST_SECONDS = 0.05
WAIT_MAX_SECONDS = 2.0


def may_be_retried(error: KvError) -> bool:
    """Whether another attempt may help and is safe. Every write carries a request id, so that it is applied once."""
    return isinstance(error, (Unavailable, Overloaded, OutcomeUnknown))


def settles(error: KvError) -> bool:
    """Whether this answer holds for earlier attempts too: the server has looked at the request, and would have known its id."""
    return isinstance(error, VersionMismatch) or (
        error.reason != "" and error.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
    )


def checked(timeout: float) -> float:
    """`timeout`, if it is one."""
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout is {timeout}; it must be above 0 and finite")
    return timeout


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
        self._timeout = checked(timeout)
        self._renewed = renewed
        self._deadline = clock() + timeout
        self._retries = 0
        self._unknown: OutcomeUnknown | None = None

    def time_left(self) -> float:
        """Seconds until the deadline."""
        return max(0.0, self._deadline - self._clock())

    def wait_after(self, error: KvError) -> float:
        """Seconds to wait before the next attempt. Raises what the call has come to when there is none.

        Once an attempt may have applied a write, only an answer about the request itself tells more. Any other failure tells
        about its own attempt: the outcome stays unknown.
        """
        if isinstance(error, OutcomeUnknown):
            self._unknown = error
        window = min(WAIT_MAX_SECONDS, WAIT_FIRST_SECONDS * (1 << self._retries))
        wait = max(self._jitter() * window, error.retry_after)
        if not may_be_retried(error) or self._retries == RETRIES_MAX or wait >= self.time_left():
            if self._unknown is None or self._unknown is error or settles(error):
                raise error
            raise self._unknown from error
        self._retries += 1
        return wait

    def step(self) -> None:
        """A walk has come further: its next step has all retries again."""
        self._retries = 0
        self._unknown = None
        if self._renewed:
            self._deadline = self._clock() + self._timeout
