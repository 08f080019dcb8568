"""Rows that break careless writers, and the small tools to write them to memory."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import cycle, islice
from typing import Any, BinaryIO, Literal

import pyarrow as pa

from export_pipeline.catalog.types import ColumnType, OutputColumn
from export_pipeline.formats import open_format
from export_pipeline.formats.base import FormatOptions, WrittenFile
from export_pipeline.formats.splitter import write_files
from export_pipeline.storage.batches import ARROW_TYPES

AMPLE = 1_000_000_000
COLUMNS = (
    OutputColumn("id", "ID", ColumnType.INTEGER),
    OutputColumn("label", 'The "label", quoted', ColumnType.TEXT),
    OutputColumn("uid", "uid", ColumnType.UUID),
    OutputColumn("big", "big & <wide>", ColumnType.INTEGER),
    OutputColumn("ratio", "ratio", ColumnType.FLOAT),
    OutputColumn("doc", "doc", ColumnType.JSON),
    OutputColumn("amount", "Montão é", ColumnType.DECIMAL),
    OutputColumn("flag", "flag", ColumnType.BOOLEAN),
    OutputColumn("at", "at", ColumnType.TIMESTAMP),
    OutputColumn("day", "day", ColumnType.DATE),
)
TEXTS: tuple[str | None, ...] = (
    None,
    "",
    "plain",
    "São Paulo é ótimo ñ",
    "日本語 😀 👩‍👩‍👧 \U0001f1e7\U0001f1f7",
    'she said "hi"',
    '"',
    '""',
    "a,b;c|d",
    "line\nfeed",
    "carriage\rreturn",
    "both\r\nof them",
    "\r",
    "\n",
    "tab\there",
    " leading",
    "trailing ",
    "  ",
    "=SUM(A1:A2)",
    "+cmd|' /C calc'!A0",
    "-2+3+cmd",
    "@import",
    "\t=1",
    "+55 (11) 91234-5678",
    "-12.5",
    "007",
    "00123",
    "12345678901234567890",
    "1e5",
    "TRUE",
    "null",
    "NaN",
    "#N/A",
    "2026-03-08",
    "a & b < c > d &amp; &lt;",
    "]]><!-- <x/>",
    "control \x01 \x1f \x7f chars",
    "not a character: \ufffe \uffff",
    "_x0041_ _x005F_ _x000d_ _x0041_x0042_",
    "separators \u2028 \u2029 \u0085 \u00a0 \ufeff",
    "backslash \\ \\n \\u0041",
    "e\u0301 \u202eright to left",
    "x" * 40_000,
    "😀" * 17_000,
)
INTEGERS = (0, None, -1, 2**63 - 1, -(2**63), 999_999_999_999_999, 10**15, -(10**15), 2**53 + 1)
FLOATS = (0.1 + 0.2, None, -0.0, 1e-7, 1e300, 5e-324, float("nan"), float("inf"), float("-inf"), 12345.0, 1 / 3)
DECIMALS = (
    "12.50",
    None,
    "-0.001",
    "123456789012345",
    "1234567890123456",
    "0.10000000000000000001",
    "NaN",
    "1e-7",
    "0",
)
FLAGS = (True, False, None)
INSTANTS = (
    datetime(2026, 3, 8, 6, 59, 59, tzinfo=UTC),
    datetime(2026, 3, 8, 7, 0, 0, tzinfo=UTC),
    None,
    datetime(2026, 11, 1, 5, 30, tzinfo=UTC),
    datetime(2026, 11, 1, 6, 30, tzinfo=UTC),
    datetime(2026, 3, 8, 1, 30, 0, 1, tzinfo=UTC),
    datetime(2026, 3, 8, 1, 30, 0, 123_000, tzinfo=UTC),
    datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(1880, 5, 1, 12, 0, tzinfo=UTC),
    datetime(1900, 2, 28, 12, 0, tzinfo=UTC),
    datetime(1900, 3, 2, 12, 0, tzinfo=UTC),
    datetime(1, 1, 2, tzinfo=UTC),
    datetime(9999, 12, 30, 23, 59, 59, tzinfo=UTC),
)
DAYS = (
    date(2026, 3, 8), None, date(1899, 12, 31), date(1900, 2, 28), date(1900, 3, 1), date(1, 1, 1), date(9999, 12, 31),
)  # fmt: skip
DOCS = (
    '{"a": 1, "b": ["x", "ý", null], "c": {"d": "q\\"uote\\nline"}}',
    None,
    "[1,2,3]",
    '"=text"',
    "null",
    "-12.50",
    '{\n  "pretty": true,\r\n  "n": 12345678901234567890.123\n}',
    "{}",
)


def nasty_table() -> pa.Table:
    """Every nasty value at least once, in columns of every type."""
    rows = len(TEXTS)
    uids = [None if row % 5 == 4 else f"6f0c0000-0000-4000-8000-{row:012d}" for row in range(rows)]
    values: dict[str, Sequence[Any]] = {
        "id": range(1, rows + 1),
        "label": TEXTS,
        "uid": uids,
        "big": list(islice(cycle(INTEGERS), rows)),
        "ratio": list(islice(cycle(FLOATS), rows)),
        "doc": list(islice(cycle(DOCS), rows)),
        "amount": list(islice(cycle(DECIMALS), rows)),
        "flag": list(islice(cycle(FLAGS), rows)),
        "at": list(islice(cycle(INSTANTS), rows)),
        "day": list(islice(cycle(DAYS), rows)),
    }
    return table_of(values)


def ordinary_table(rows: int, *, seed: int = 0) -> pa.Table:
    """Many rows as they are in life, with some of the nasty ones strewn in."""
    short = [text for text in TEXTS if text is None or len(text) < 100]
    spread = [(row * 7919 + seed) % 104_729 for row in range(rows)]
    return table_of(
        {
            "id": range(1, rows + 1),
            "label": [short[n % len(short)] if n % 11 == 0 else f"Person {n} Example {n * n}" for n in spread],
            "uid": [f"6f0c{n:04x}-0000-4000-8000-{row:012d}" for row, n in enumerate(spread)],
            "big": spread,
            "ratio": [n / 7 if n % 13 else None for n in spread],
            "doc": [json.dumps({"n": n, "tags": ["a", "b"]}) if n % 3 else None for n in spread],
            "amount": [f"{n}.{n % 100:02d}" for n in spread],
            "flag": [bool(n & 1) for n in spread],
            "at": [datetime.fromtimestamp(1_700_000_000 + n * 1000, UTC) for n in spread],
            "day": [date.fromordinal(735_000 + n % 3000) for n in spread],
        }
    )


def table_of(values: dict[str, Any], columns: Sequence[OutputColumn] = COLUMNS) -> pa.Table:
    """A staged table of these columns."""
    fields = [(column.name, ARROW_TYPES[column.type]) for column in columns if column.name in values]
    return pa.table({name: pa.array(list(values[name]), kind) for name, kind in fields}, schema=pa.schema(fields))


def one_column(kind: ColumnType, values: Sequence[Any]) -> tuple[pa.Table, tuple[OutputColumn, ...]]:
    """A staged table of an id and one column ``v``, and its output columns."""
    columns = (OutputColumn("id", "id", ColumnType.INTEGER), OutputColumn("v", "v", kind))
    return table_of({"id": range(1, len(values) + 1), "v": values}, columns), columns


@dataclass
class Written:
    """What came of writing a table."""

    files: list[WrittenFile]
    contents: list[bytes]
    counters: dict[str, int]
    extension: str
    media_type: str
    progress: list[int] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)


def write_all(
    name: str,
    table: pa.Table,
    *,
    columns: tuple[OutputColumn, ...] = COLUMNS,
    max_bytes: int = AMPLE,
    compression: Literal["none", "gzip"] = "none",
    batch_rows: int = 65_536,
    key: str = "id",
    **options: Any,
) -> Written:
    """Write a table to files in memory."""
    fmt = open_format(name, FormatOptions(columns, max_bytes, compression, **options))
    written = Written([], [], {}, fmt.extension, fmt.media_type)

    @contextmanager
    def create(ordinal: int) -> Iterator[BinaryIO]:
        assert ordinal == len(written.contents) + 1
        sink = io.BytesIO()
        try:
            yield sink
        except BaseException:
            written.aborted.append(ordinal)
            raise
        written.contents.append(sink.getvalue())

    batches = table.to_batches(max_chunksize=batch_rows)
    files = write_files(batches, fmt, create, key=key, max_bytes=max_bytes, progress=written.progress.append)
    written.files = list(files)
    written.counters = {name: sum(file.counters[name] for file in written.files) for name in fmt.counters}
    return written
