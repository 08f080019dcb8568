"""Work on several items at once, in order: while one result is used, the next are being made.

Threads are enough: polars, Arrow, isal and hashlib let go of the interpreter while they work.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")
MOST_THREADS = 4
"""More would only be waited for by the one thread that takes the results."""


def cores() -> int:
    """The cores that this process may use, ``MOST_THREADS`` at most."""
    return min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def map_ahead(work: Callable[[T], R], items: Iterable[T], *, threads: int) -> Generator[R, None, None]:
    """``map(work, items)`` in ``threads`` threads, at most one result more than these waiting.

    ``items`` is advanced by the caller's thread. Closing the generator waits for what is being made.
    What ``work`` raises is raised in its place in the order; what ``items`` raises, at once.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="export-ahead")
    try:
        under_way: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(iterator, threads))
        while under_way:
            done = under_way.popleft()
            under_way.extend(pool.submit(work, item) for item in islice(iterator, 1))
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


# Calls that wait in a driver's C code, and can be broken off all the same.


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
