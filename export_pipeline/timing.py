"""Where the seconds of an export go: read, stage, serialize, compress, upload.

A part is timed a batch or a block at a time, never a row: a timer costs a microsecond.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Self, TypeVar, cast

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")


class StageSeconds(BaseModel):
    """Seconds that passed in the parts of an export, summed over its shards; ``stage`` overlaps with ``read``.

    ``read``: waiting for the database and its driver. ``stage``: writing to the staging store and
    reading back from it. ``serialize``: rows to the bytes of a format, their checksum, and what
    parquet compresses inside its own writer. ``compress``: deflate. ``upload``: staging store to store.
    """

    model_config = ConfigDict(frozen=True)

    read: float = 0.0
    stage: float = 0.0
    serialize: float = 0.0
    compress: float = 0.0
    upload: float = 0.0

    def __add__(self, other: StageSeconds) -> StageSeconds:
        mine, theirs = self.model_dump(), other.model_dump()
        return StageSeconds(**{part: mine[part] + theirs[part] for part in mine})

    @property
    def bound_by(self) -> str:
        """The part that took the longest: faster elsewhere would help less."""
        parts: dict[str, float] = self.model_dump()
        return max(parts, key=lambda part: parts[part])


class Timer:
    """Seconds inside its ``with`` blocks, summed; blocks of one timer do not nest."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The items, timing how long each takes to come."""
        iterator = iter(items)
        while True:
            with self:
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def sink(self, sink: BinaryIO) -> BinaryIO:
        """The sink, timing what it takes to write to it."""
        return cast("BinaryIO", _TimedSink(sink, self))


class _TimedSink:
    def __init__(self, sink: BinaryIO, timer: Timer) -> None:
        self._sink = sink
        self._timer = timer

    def write(self, data: bytes | memoryview) -> int:
        with self._timer:
            return self._sink.write(data)


# Run metadata: what the UI shows and plots of each stage.


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far, wall clock."""
        return time.perf_counter() - self._began
