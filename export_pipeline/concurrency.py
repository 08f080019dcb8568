"""Threads: results computed ahead in order, and calls into a driver that can be interrupted.

Threads are enough: polars, Arrow, isal and hashlib release the interpreter lock while they work.
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
_MAX_THREADS = 4
"""The one thread that takes the results cannot keep more busy."""


def cores() -> int:
    """The number of cores that this process may use, at most 4."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(_MAX_THREADS, available)


def map_ahead(work: Callable[[T], R], items: Iterable[T], *, threads: int) -> Generator[R, None, None]:
    """``map(work, items)`` in ``threads`` threads, with at most ``threads + 1`` results in memory.

    The caller's thread advances ``items``. Closing the generator waits for the work in progress.
    An error of ``work`` is raised at its place in the order; an error of ``items`` at once.
    """
    iterator = iter(items)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="export-ahead")
    try:
        pending: deque[Future[R]] = deque(pool.submit(work, item) for item in islice(iterator, threads))
        while pending:
            done = pending.popleft()
            pending.extend(pool.submit(work, item) for item in islice(iterator, 1))
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


class Interruptible:
    """Runs calls that wait in a driver's C code in a thread, one at a time, so that they can be interrupted.

    Make it the innermost context: what the calls use may be closed only after the last call has returned.
    """

    def __init__(self, interrupt: Callable[[], object], errors: tuple[type[Exception], ...]) -> None:
        """``interrupt`` ends the running call from another thread; it may raise ``errors``."""
        self._interrupt = interrupt
        self._errors = errors
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="export-driver")
        self._future: Future[Any] | None = None

    def __enter__(self) -> Interruptible:
        return self

    def __exit__(self, *_: object) -> None:
        """Interrupt the call that still runs because of an exception, and end the thread."""
        while self._future is not None and not self._future.done():
            with suppress(*self._errors):
                self._interrupt()
            wait([self._future], timeout=1.0)  # a call that has not reached the server yet needs another interrupt
        self._thread.shutdown()

    def __call__(self, work: Callable[[], R]) -> R:
        """Return or raise what ``work`` does."""
        self._future = future = self._thread.submit(work)
        return future.result()
