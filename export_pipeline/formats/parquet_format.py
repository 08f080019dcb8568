"""Parquet: typed, zstd, under a strict ceiling.

Rows cannot be removed from a parquet file once they are written, and its footer comes last. So rows are taken when even
their worst case fits; near the ceiling a row group is first written to memory, to learn its exact size. Dictionaries
are off: zstd finds the same repetitions, and a dictionary's size is known only afterwards.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from export_pipeline.catalog.types import ColumnType
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats.base import FormatOptions
from export_pipeline.formats.columns import typed_arrays
from export_pipeline.formats.text_file import too_small
from export_pipeline.storage.batches import ARROW_TYPES
from export_pipeline.timing import Timer

GROUP_ROWS = 65_536
GROUP_BYTES = 32_000_000
"""A row group is written when it has so many rows or bytes (in memory)."""
_COLUMN_FOOTER = 400
"""More than the bytes of the footer about one column of a row group, apart from its name."""
_COLUMN_OVERHEAD = 1024
"""More than the bytes of one column of a row group beyond its values: page headers, zstd frames."""
# Statistics of text would put whole values, up to kilobytes, into the footer.
_WITH_STATISTICS = frozenset(
    {ColumnType.INTEGER, ColumnType.FLOAT, ColumnType.BOOLEAN, ColumnType.TIMESTAMP, ColumnType.DATE}
)


class ParquetFormat:
    """Parquet with its options."""

    extension = "parquet"
    media_type = "application/vnd.apache.parquet"
    counters: Mapping[str, int] = {}

    def __init__(self, options: FormatOptions) -> None:
        if options.compression != "none":
            message = "parquet is already compressed; leave compression out or 'none'"
            raise ExportFailure(FailureCode.UNKNOWN_COMPRESSION, message, field="compression")
        self._options = options
        self._schema = pa.schema([pa.field(column.header, ARROW_TYPES[column.type]) for column in options.columns])
        self._statistics = [column.header for column in options.columns if column.type in _WITH_STATISTICS]
        self._empty_size = len(self.trial(None))
        self.group_footer = sum(_COLUMN_FOOTER + len(name.encode()) for name in self._schema.names)
        """At most the bytes of the footer about one row group."""
        self.packing = Timer()  # never runs: Arrow compresses while it writes

    def encode(self, batch: pa.RecordBatch, counted: Counter[str]) -> pa.RecordBatch:  # noqa: ARG002 - nothing is altered
        """The output columns of a staged batch, under their headers."""
        return pa.RecordBatch.from_arrays(typed_arrays(batch, self._options.columns), schema=self._schema)

    def open(self, sink: BinaryIO) -> ParquetFile:
        """Begin a file."""
        if self._empty_size > self._options.max_bytes:
            raise too_small("parquet", self._options.max_bytes, self._empty_size)
        return ParquetFile(sink, self, self._options.max_bytes, self._empty_size)

    def writer(self, sink: Any) -> pq.ParquetWriter:
        """A writer with the settings of this format."""
        return pq.ParquetWriter(
            sink, self._schema, compression="zstd", use_dictionary=False, write_statistics=self._statistics or False
        )

    def trial(self, rows: pa.RecordBatch | None) -> bytes:
        """A whole file in memory, of these rows."""
        stream = io.BytesIO()
        with self.writer(stream) as writer:
            if rows is not None:
                writer.write_table(pa.Table.from_batches([rows]), row_group_size=rows.num_rows)
        return stream.getvalue()

    def worst_case(self, rows: pa.RecordBatch) -> int:
        """At most the bytes of these rows as a row group, the footer included."""
        cells: int = rows.num_rows * rows.num_columns
        values = int((rows.nbytes + cells // 2) * 1.02)
        return values + len(self._schema) * _COLUMN_OVERHEAD + self.group_footer


class ParquetFile:
    """One file being written."""

    def __init__(self, sink: BinaryIO, fmt: ParquetFormat, max_bytes: int, empty_size: int) -> None:
        self._sink = sink
        self._format = fmt
        self._writer = fmt.writer(self._sink)
        self._max_bytes = max_bytes
        self._reserve = empty_size - self._sink.tell()
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = self._pending_bytes = self._pending_worst = 0
        self._begun = False
        self._ratio = 0.5

    def write(self, encoded: pa.RecordBatch, start: int) -> int:
        """Take as many rows as fit (see ``FileWriter``)."""
        rest = encoded.slice(start)
        if self._take(rest):
            return int(rest.num_rows)
        self._flush()
        if self._take(rest):
            return int(rest.num_rows)
        return self._take_tightly(rest)

    def close(self) -> None:
        """Write the last row group and the footer."""
        self._flush()
        self._writer.close()

    def _room(self) -> int:
        return self._max_bytes - self._sink.tell() - self._reserve

    def _take(self, rows: pa.RecordBatch) -> bool:
        """Take all rows, if even their worst case fits."""
        worst = self._format.worst_case(rows)
        if self._pending_worst + worst > self._room():
            return False
        self._pending.append(rows)
        self._pending_rows += rows.num_rows
        self._pending_bytes += rows.nbytes
        self._pending_worst += worst
        self._begun = True
        if self._pending_rows >= GROUP_ROWS or self._pending_bytes >= GROUP_BYTES:
            self._flush()
        return True

    def _flush(self) -> None:
        if self._pending:
            self._write_group(pa.Table.from_batches(self._pending))
        self._pending = []
        self._pending_rows = self._pending_bytes = self._pending_worst = 0

    def _write_group(self, rows: pa.Table) -> None:
        before = self._sink.tell()
        self._writer.write_table(rows, row_group_size=rows.num_rows)
        self._ratio = (self._sink.tell() - before) / max(rows.nbytes, 1)
        self._reserve += self._format.group_footer

    def _take_tightly(self, rows: pa.RecordBatch) -> int:
        """Take the rows whose exact size fits; a begun file may stay a few bytes below its ceiling."""
        taken = 0
        while taken < rows.num_rows and not (self._begun and self._room() < self._max_bytes // 25):
            part = self._largest(rows.slice(taken))
            if part is None:
                break
            self._write_group(pa.Table.from_batches([part]))
            self._begun = True
            taken += part.num_rows
        return taken

    def _largest(self, rows: pa.RecordBatch) -> pa.RecordBatch | None:
        """As many of these rows as fit, from the first; None if not even one does."""
        room = self._room() - self._format.group_footer
        expected = max(rows.nbytes * self._ratio, 1)
        count = min(rows.num_rows, max(1, int(rows.num_rows * room / expected * 0.97)))
        while count and room > 0:
            part = rows.slice(0, count)
            size = len(self._format.trial(part))
            if size <= room:
                return part
            count = min(count - 1, max(1, int(count * room / size * 0.97)))
        return None
