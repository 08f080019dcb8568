"""Work on several items at once, in order: while one result is used, the next are being made.

What belongs here: the bounded queue between threads. What does not: what the work is.

Threads are enough: polars, Arrow, isal and hashlib let go of the interpreter while they work.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MOST_THREADS = 4
"""More would only be waited for by the one thread that takes the results."""


def cores() -> int:
    """The cores that this process may use, ``MOST_THREADS`` at most."""
    return min(MOST_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def ahead(work: Callable[[T], R], items: Iterable[T], *, threads: int) -> Generator[R, None, None]:
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
