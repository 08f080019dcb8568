"""Reading: one snapshot of the source into staged shards."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from export_pipeline.concurrency import map_ahead
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Snapshot, Source, open_snapshot
from export_pipeline.source.readers.arrow_types import staged_schema
from export_pipeline.storage.batches import BatchWriter
from export_pipeline.storage.staging import Staging, one_try
from export_pipeline.timing import StageSeconds, Timer


@dataclass(frozen=True)
class StagedShard:
    """A run of rows in the order of the key: its place from 1, its staging key, its rows."""

    ordinal: int
    key: str
    rows: int


@dataclass(frozen=True)
class StagedRows:
    """What was read: rows of one instant (UTC), in one shard or more, Arrow bytes in memory."""

    rows: int
    bytes: int
    snapshot_at: datetime
    shards: tuple[StagedShard, ...]
    seconds: StageSeconds


@dataclass(frozen=True)
class Sharding:
    """When to cut shards: once the rows fill ``max_bytes`` twice over, every ``shard_rows`` rows."""

    max_bytes: int
    shard_rows: int


SnapshotTaken = Callable[[int, datetime], None]
"""Told once: the exact number of rows, and the instant they are of."""


def stage_rows(
    source: Source,
    selected: Selection,
    staging: Staging,
    prefix: str,
    *,
    sharding: Sharding,
    snapshot_taken: SnapshotTaken,
    progress: Callable[[int], None],
) -> StagedRows:
    """Read a selection in one snapshot and stage it under ``prefix``.

    The source is held for the read alone. ``progress`` gets the rows done so far, and may raise to stop.

    Raises:
        ExportFailure: what a reader or the staging store raises; ``count_mismatch`` if the rows read
            are not as many as the same snapshot counted.
    """
    query = build_query(selected, source.backend)
    schema = staged_schema(query.columns)
    reading = Timer()
    with ExitStack() as held:
        place = held.enter_context(one_try(staging, f"{prefix}/rows"))
        with reading:
            snapshot = held.enter_context(open_snapshot(source, query))
        snapshot_taken(snapshot.row_count, snapshot.taken_at)
        stager = _Stager(staging, place, schema, snapshot, sharding, reading)
        with stager, closing(stager.stage()) as staging_rows:
            for done in staging_rows:
                progress(done)
    if stager.rows != snapshot.row_count:
        raise ExportFailure(
            FailureCode.COUNT_MISMATCH,
            f"{stager.rows} rows were read of a snapshot of {snapshot.row_count}. Retry the export; if it happens "
            "again, the key column of the dataset may not be unique.",
        )
    seconds = StageSeconds(read=reading.seconds, stage=stager.staging_seconds)
    return StagedRows(stager.rows, stager.bytes, snapshot.taken_at, tuple(stager.shards), seconds)


class _Stager(ExitStack):
    """Writes batches to shards; as a context, it ends the shard that is open."""

    def __init__(
        self, staging: Staging, prefix: str, schema: pa.Schema, snapshot: Snapshot, sharding: Sharding, reading: Timer
    ) -> None:
        super().__init__()
        self._staging = staging
        self._prefix = prefix
        self._schema = schema
        self._snapshot = snapshot
        self._sharding = sharding
        self._reading = reading
        self._writing = Timer()
        self._shard_rows: int | None = None
        self._writer: BatchWriter | None = None
        self._rows_in_shard = 0
        self.rows = 0
        self.bytes = 0
        self.shards: list[StagedShard] = []

    def stage(self) -> Generator[int, None, None]:
        """Stage everything, each batch while the next is read, giving the number of rows done after each."""
        yield from map_ahead(self._stage, self._reading.each(self._snapshot.batches), threads=1)
        with self._writing:
            self._end_shard()

    @property
    def staging_seconds(self) -> float:
        """Spent on writing to the staging store."""
        return self._writing.seconds

    def _stage(self, batch: pa.RecordBatch) -> int:
        if self.rows == 0 and batch.num_rows:
            self._shard_rows = self._rows_per_shard(batch)
        with self._writing:
            for piece in self._cut(batch):
                self._write(piece)
        return self.rows

    def _rows_per_shard(self, first: pa.RecordBatch) -> int | None:
        estimate = first.nbytes / first.num_rows * self._snapshot.row_count
        return self._sharding.shard_rows if estimate > 2 * self._sharding.max_bytes else None

    def _cut(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        start = 0
        while start < batch.num_rows:
            room = batch.num_rows if self._shard_rows is None else self._shard_rows - self._rows_in_shard
            piece = batch.slice(start, room)
            start += piece.num_rows
            yield piece

    def _write(self, piece: pa.RecordBatch) -> None:
        if self._writer is None:
            self._begin_shard()
        assert self._writer is not None  # noqa: S101 - for the type checker
        self._writer.write(piece)
        self._rows_in_shard += piece.num_rows
        self.rows += piece.num_rows
        self.bytes += piece.nbytes
        if self._rows_in_shard == self._shard_rows:
            self._end_shard()

    def _begin_shard(self) -> None:
        key = f"{self._prefix}/{len(self.shards) + 1:05d}.arrow"
        self._writer = self.enter_context(self._staging.write_batches(key, self._schema))
        self.shards.append(StagedShard(len(self.shards) + 1, key, 0))

    def _end_shard(self) -> None:
        if self._writer is None and self.shards:
            return
        if self._writer is None:
            self._begin_shard()
        self.close()
        last = self.shards[-1]
        self.shards[-1] = StagedShard(last.ordinal, last.key, self._rows_in_shard)
        self._writer, self._rows_in_shard = None, 0
