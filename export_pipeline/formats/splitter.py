"""From batches of rows to finished files, each under the ceiling."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import pyarrow as pa

from export_pipeline.concurrency import cores, map_ahead
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats.base import FileFormat, FileWriter, WrittenFile

BLOCK_ROWS = 14_336
BLOCK_CELLS = 400_000
BLOCK_BYTES = 16_000_000
WEIGHED_ROWS = 256
"""A block is encoded at once. The bounds keep memory constant for any rows: many, wide or large."""
Create = Callable[[int], AbstractContextManager[BinaryIO]]


def write_files(
    batches: Iterable[pa.RecordBatch],
    fmt: FileFormat[Any],
    create: Create,
    *,
    key: str,
    max_bytes: int,
    progress: Callable[[int], None],
) -> Iterator[WrittenFile]:
    """Write all rows to as many files as the ceiling requires, at least one; yield each when closed.

    Blocks are encoded ahead on all cores; the caller's thread compresses, hashes and writes. The batches are the staged
    rows, in order, of any size. ``create`` opens the sink of the file with this ordinal (from 1); its context ends when
    the file is complete, or with the exception that stopped it. ``key`` names the column that identifies a row, for the
    message about a row that fits no file. ``max_bytes`` is the ceiling on delivered bytes that ``fmt`` was opened with.
    ``progress`` is called with the rows written so far, after each block and each cut, and may raise.
    """
    with closing(map_ahead(partial(_encoded, fmt, key), even_blocks(batches), threads=cores())) as encoded:
        blocks = _Blocks(encoded, fmt.counters, key)
        ordinal = rows_before = 0
        while ordinal == 0 or blocks.more():
            ordinal += 1
            with create(ordinal) as raw:
                sink = _CountingSink(raw)
                try:
                    writer = fmt.open(cast("BinaryIO", sink))
                    rows = 0
                    while not blocks.cut and blocks.more():
                        rows += blocks.write(writer, is_first=not rows)
                        progress(rows_before + rows)
                    writer.close()
                except BaseException:
                    sink.abandon()
                    raise
                if sink.count > max_bytes:
                    message = f"file {ordinal} has {sink.count} bytes, more than its limit of {max_bytes}"
                    raise ExportFailure(FailureCode.SIZE_LIMIT_EXCEEDED, message)
            rows_before += rows
            counters = blocks.next_file()
            counters.update(fmt.counters)
            yield WrittenFile(ordinal, rows, sink.count, sink.digest.hexdigest(), counters)


@dataclass(frozen=True)
class _EncodedBlock:
    keys: pa.Array  # not the whole block: several blocks are pending, and their source rows are no longer needed
    encoded: Any
    counted: Counter[str]


def _encoded(fmt: FileFormat[Any], key: str, block: pa.RecordBatch) -> _EncodedBlock:
    counted = Counter[str]()
    return _EncodedBlock(block.column(key), fmt.encode(block, counted), counted)


class _Blocks:
    """The rows still to be written: a source of encoded blocks, and the current block."""

    def __init__(self, source: Iterator[_EncodedBlock], counters: Iterable[str], key: str) -> None:
        self._source = source
        self._key = key
        self._block = _EncodedBlock(pa.array([]), (), Counter())
        self._at = 0
        self._zeros = dict.fromkeys(counters, 0)
        self._counted = Counter(self._zeros)
        self.cut = False
        """The current file took only a part of the current block: it is full."""

    def more(self) -> bool:
        """Whether any row is left; takes the next block if necessary."""
        if self._at < len(self._block.encoded):
            return True
        self._block, self._at = _EncodedBlock(pa.array([]), (), Counter()), 0  # frees memory before the next one
        block = next(self._source, None)
        if block is None:
            return False
        self._block = block
        self._counted.update(block.counted)
        return True

    def write(self, writer: FileWriter[Any], *, is_first: bool) -> int:
        """Let a file take rows of the block; ``row_too_large`` if it takes none and has none yet (``is_first``)."""
        taken = writer.write(self._block.encoded, self._at)
        if is_first and not taken:
            raise ExportFailure(
                FailureCode.ROW_TOO_LARGE,
                f"the row with {self._key} {self._block.keys[self._at].as_py()!r} does not fit into one file; raise "
                "the limit or leave columns out",
                field="max_file_size_mb",
            )
        self._at += taken
        self.cut = self._at < len(self._block.encoded)
        return taken

    def next_file(self) -> Counter[str]:
        """The changes since the last file. A block counts for the file that was open when it came."""
        since, self._counted = self._counted, Counter(self._zeros)
        self.cut = False
        return since


def even_blocks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in blocks that do not depend on the batches, so that the files do not either."""
    pending: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        block_rows = min(BLOCK_ROWS, max(WEIGHED_ROWS, BLOCK_CELLS // max(1, batch.num_columns)))
        begin = at = 0
        while at < batch.num_rows:
            step = min(block_rows - rows, batch.num_rows - at)
            weight = batch.slice(at, step).nbytes
            if size + weight > BLOCK_BYTES // 2:  # a part of it may fill the block: measure smaller parts
                step = min(WEIGHED_ROWS - rows % WEIGHED_ROWS, step)
                weight = batch.slice(at, step).nbytes
            size += weight
            at += step
            rows += step
            if rows == block_rows or (size >= BLOCK_BYTES and rows % WEIGHED_ROWS == 0):
                yield from _bounded(_joined([*pending, batch.slice(begin, at - begin)]))
                pending, rows, size, begin = [], 0, 0, at
        if begin < at:
            pending.append(batch.slice(begin))
    if pending:
        yield from _bounded(_joined(pending))


def _joined(parts: list[pa.RecordBatch]) -> pa.RecordBatch:
    return parts[0] if len(parts) == 1 else pa.concat_batches(parts)


def _bounded(block: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Halve a block of large rows until its parts are small enough (or one row)."""
    if block.nbytes <= BLOCK_BYTES or block.num_rows <= 1:
        yield block
        return
    half = block.num_rows // 2
    yield from _bounded(block.slice(0, half))
    yield from _bounded(block.slice(half))


class _CountingSink:
    """A write-only sink that counts and hashes the bytes. The caller closes the sink below it."""

    closed = False

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._abandoned = False
        self.count = 0
        self.digest = hashlib.sha256()

    def tell(self) -> int:
        return self.count

    def flush(self) -> None: ...

    def close(self) -> None: ...

    def abandon(self) -> None:
        """Ignore all further bytes: a library's writer may still end its file when it is collected."""
        self._abandoned = True

    def write(self, data: bytes | memoryview) -> int:
        """Pass bytes on."""
        if self._abandoned:
            return len(data)
        self._sink.write(data)
        self.digest.update(data)
        self.count += len(data)
        return len(data)
