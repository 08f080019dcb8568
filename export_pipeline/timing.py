"""Measure the seconds of an export's parts: read, stage, serialize, compress, upload.

Measure per batch or block, never per row: a measurement costs a microsecond.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Self, TypeVar, cast

from pydantic import BaseModel

T = TypeVar("T")


class StageSeconds(BaseModel, frozen=True):
    """Wall-clock seconds of an export's parts, summed over its shards; ``stage`` overlaps with ``read``.

    ``read``: waiting for the database and its driver. ``stage``: writing to the staging store and
    reading back from it. ``serialize``: rows to the bytes of a format, their checksum, and what
    parquet compresses inside its own writer. ``compress``: deflate. ``upload``: staging store to store.
    """

    read: float = 0.0
    stage: float = 0.0
    serialize: float = 0.0
    compress: float = 0.0
    upload: float = 0.0

    def __add__(self, other: StageSeconds) -> StageSeconds:
        return StageSeconds(**{part: seconds + getattr(other, part) for part, seconds in self})

    @property
    def bound_by(self) -> str:
        """The slowest part: to speed up another one gains less."""
        return max(self, key=lambda part: float(part[1]))[0]


class Timer:
    """The sum of the seconds inside its ``with`` blocks, which must not nest."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, measuring the wait for each."""
        iterator = iter(items)
        while True:
            with self:
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def sink(self, sink: BinaryIO) -> BinaryIO:
        """The sink, with its writes measured."""
        return cast("BinaryIO", _TimedSink(sink, self))


class _TimedSink:
    def __init__(self, sink: BinaryIO, timer: Timer) -> None:
        self._sink = sink
        self._timer = timer

    def write(self, data: bytes | memoryview) -> int:
        with self._timer:
            return self._sink.write(data)


class Stopwatch:
    """Wall-clock seconds since it was created."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        return time.perf_counter() - self._began
