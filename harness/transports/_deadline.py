"""A thread that acts when a piece of work takes too long: one for many short pieces."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watch:
    """
    Calls *late(seconds)* once when work under within(seconds) takes longer.

    Its thread sleeps until the earliest moment that something could be late at, and for good while there is
    no work: a timer for each piece would be a new thread for each.
    """

    def __init__(self, late: Callable[[float], None]) -> None:
        self._late = late
        self._changed = threading.Condition()
        self._until_s: float | None = None  # of the work that goes on, on the monotonic clock
        self._limit_s = 0.0
        self._wakes_s = 0.0  # when the thread looks again by itself; 0: not before it is told to
        self._thread: threading.Thread | None = None
        self._over = False

    @contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """One piece of work at a time."""
        with self._changed:
            self._until_s, self._limit_s = time.monotonic() + seconds, seconds
            if self._thread is None and not self._over:
                self._thread = threading.Thread(target=self._run, name="deadline", daemon=True)
                self._thread.start()
            elif not self._wakes_s or self._wakes_s > self._until_s:
                self._changed.notify()
        try:
            yield
        finally:
            self._until_s = None

    def close(self) -> None:
        """End the thread; nothing is late any more."""
        with self._changed:
            self._over = True
            self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._over:
                until_s = self._until_s
                if until_s is None:
                    self._wakes_s = 0.0
                    self._changed.wait()
                elif (left_s := until_s - time.monotonic()) > 0:
                    self._wakes_s = until_s
                    self._changed.wait(left_s)
                else:
                    break
            over, limit_s = self._over, self._limit_s
        if not over:
            self._late(limit_s)
