"""The op ``filter_entities``: read one snapshot of the source into staged shards."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa

from export_pipeline.concurrency import map_ahead
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.source import open_snapshot
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source
from export_pipeline.storage.staging import Staging, WriteBatch, one_try
from export_pipeline.timing import StageSeconds, Timer


@dataclass(frozen=True)
class StagedShard:
    """Consecutive rows in the order of the key: the shard's number (from 1), its staging key, its rows."""

    ordinal: int
    key: str
    rows: int


@dataclass(frozen=True)
class StagedRows:
    """The rows of one instant (UTC), in one or more shards; ``bytes`` is their size in memory as Arrow."""

    rows: int
    bytes: int
    snapshot_at: datetime
    shards: tuple[StagedShard, ...]
    seconds: StageSeconds


def stage_rows(
    source: Source,
    selected: Selection,
    staging: Staging,
    prefix: str,
    *,
    max_bytes: int,
    shard_rows: int,
    snapshot_taken: Callable[[int, datetime], None],
    progress: Callable[[int], None],
) -> StagedRows:
    """Read a selection in one snapshot and stage it under ``prefix``.

    Shards are cut every ``shard_rows`` rows, but only if all rows fill more than twice ``max_bytes``. The connection to
    the source is open only while reading. ``snapshot_taken`` gets the exact number of rows and the snapshot's instant,
    ``progress`` the rows done so far; both may raise to stop.

    Raises ``ExportFailure``: what a reader or the staging store raises; ``count_mismatch`` if the number of rows read
    is not the number that the same snapshot counted.
    """
    query = build_query(selected, source.backend)
    reading = Timer()
    with ExitStack() as held:
        place = held.enter_context(one_try(staging, f"{prefix}/rows"))
        with reading:
            snapshot = held.enter_context(open_snapshot(source, query))
        snapshot_taken(snapshot.row_count, snapshot.taken_at)
        stager = _Stager(staging, place, snapshot.row_count, max_bytes, shard_rows)
        # Each batch is staged while the next is read.
        with stager, closing(map_ahead(stager.write, reading.each(snapshot.batches), threads=1)) as staged:
            for done in staged:
                progress(done)
            stager.end_shard()
    if stager.rows != snapshot.row_count:
        raise ExportFailure(
            FailureCode.COUNT_MISMATCH,
            f"{stager.rows} rows were read of a snapshot of {snapshot.row_count}. Retry the export. If it happens "
            "again, the key column of the dataset may not be unique.",
        )
    seconds = StageSeconds(read=reading.seconds, stage=stager.writing.seconds)
    return StagedRows(stager.rows, stager.bytes, snapshot.taken_at, tuple(stager.shards), seconds)


class _Stager(ExitStack):
    """Writes batches to shards; leaving the context closes the open shard."""

    def __init__(self, staging: Staging, prefix: str, row_count: int, max_bytes: int, shard_rows: int) -> None:
        super().__init__()
        self._staging = staging
        self._prefix = prefix
        self._row_count = row_count
        self._max_bytes = max_bytes
        self._rows_per_shard = shard_rows
        self._shard_rows: int | None = None
        self._write: WriteBatch | None = None
        self._key = ""
        self._rows_in_shard = 0
        self.writing = Timer()
        self.rows = 0
        self.bytes = 0
        self.shards: list[StagedShard] = []

    def write(self, batch: pa.RecordBatch) -> int:
        """Write a batch, cut where shards end; returns the rows written so far."""
        if self.rows == 0 and batch.num_rows:
            estimate = batch.nbytes / batch.num_rows * self._row_count
            self._shard_rows = self._rows_per_shard if estimate > 2 * self._max_bytes else None
        start = 0
        while start < batch.num_rows:
            room = batch.num_rows if self._shard_rows is None else self._shard_rows - self._rows_in_shard
            piece = batch.slice(start, room)
            start += piece.num_rows
            with self.writing:
                write = self._write or self._begin_shard()
                write(piece)
            self._rows_in_shard += piece.num_rows
            self.rows += piece.num_rows
            self.bytes += piece.nbytes
            if self._rows_in_shard == self._shard_rows:
                self.end_shard()
        return self.rows

    def _begin_shard(self) -> WriteBatch:
        self._key = f"{self._prefix}/{len(self.shards) + 1:05d}.arrow"
        self._write = self.enter_context(self._staging.write_batches(self._key))
        return self._write

    def end_shard(self) -> None:
        """Close the open shard; an export without rows gets an empty one."""
        if self._write is None and self.shards:
            return
        with self.writing:
            if self._write is None:
                self._begin_shard()
            self.close()
        self.shards.append(StagedShard(len(self.shards) + 1, self._key, self._rows_in_shard))
        self._write, self._rows_in_shard = None, 0
