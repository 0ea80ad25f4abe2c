"""Ends a stream whose server has fallen silent. A deadline would also end a long one that is well, or whose reader is slow."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable

from kvstore.errors import DeadlineExceeded


class Watchdog:
    """Calls `end` when the time between `waiting` and `resting` is more than was allowed."""

    def __init__(self, timeout: float, end: Callable[[], object], *, first: float) -> None:
        """The first wait, of `first` seconds, begins now; later ones have `timeout`, or what is left of one deadline."""
        self._timeout, self._end = timeout, end
        #: Whether it has ended the stream.
        self.barked = False
        self.waiting(first)

    def waiting(self, seconds: float) -> None:
        """An answer is waited for from now on."""
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def resting(self) -> None:
        """The answer is there."""
        self._deadline = math.inf

    def error(self) -> DeadlineExceeded:
        """What the stream has come to when the watchdog has ended it."""
        return DeadlineExceeded(f"the server has sent nothing for {self._seconds:.1f} seconds", "DEADLINE_EXCEEDED")

    def _check(self) -> float | None:
        """Seconds until the next check; `None` when there is none."""
        left = self._deadline - time.monotonic()
        if left > 0:
            return min(left, self._timeout)
        self.barked = True
        self._end()
        return None


class ThreadWatchdog(Watchdog):
    """With a thread of its own, from `with` to the end of the block."""

    def __enter__(self) -> ThreadWatchdog:
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="kvstore-watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while (wait := self._check()) is not None and not self._stopped.wait(wait):
            pass


class LoopWatchdog(Watchdog):
    """With a timer of the event loop, from `with` to the end of the block."""

    def __enter__(self) -> LoopWatchdog:
        self._tick()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _tick(self) -> None:
        if (wait := self._check()) is not None:
            self._timer = asyncio.get_running_loop().call_later(wait, self._tick)
