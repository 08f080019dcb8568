"""Calls that wait in a driver's C code, and can be broken off all the same.

What belongs here: waiting for such a call in a way that signals reach. What does not: what is called.

Python runs signal handlers between bytecodes of the main thread: one that waits in C, for the first row of a long
query, would hear of a cancel only when the row comes.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, TypeVar

R = TypeVar("R")


class Interruptible:
    """Calls in a thread of their own, one at a time; as a context, it ends the thread.

    It must be the innermost context: what the calls use may be closed only after the last of them has returned.
    """

    def __init__(self, break_off: Callable[[], object], errors: tuple[type[Exception], ...]) -> None:
        """``break_off`` ends the call that is under way, from another thread; it may raise ``errors``."""
        self._break_off = break_off
        self._errors = errors
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="export-driver")
        self._future: Future[Any] | None = None

    def __enter__(self) -> Interruptible:
        return self

    def __exit__(self, *_: object) -> None:
        """Break off what is still under way because something was raised meanwhile, and end the thread."""
        while self._future is not None and not self._future.done():
            with suppress(*self._errors):
                self._break_off()
            wait([self._future], timeout=1.0)  # a call that had not reached the server yet is not broken off: once more
        self._thread.shutdown()

    def __call__(self, work: Callable[[], R]) -> R:
        """What ``work`` returns or raises."""
        self._future = future = self._thread.submit(work)
        return future.result()
