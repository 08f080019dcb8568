"""Reading files back with readers that are not ours.

What belongs here: one function a reader, from a file's bytes to its header and rows.
What does not: what the rows must be (test_formats).
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from decimal import Decimal
from typing import Any

import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import python_calamine

Rows = tuple[list[str], list[list[Any]]]


def gunzip_one_member(data: bytes) -> bytes:
    """The content of a file that must be exactly one gzip member."""
    member = zlib.decompressobj(16 + zlib.MAX_WBITS)
    content = member.decompress(data)
    assert member.eof
    assert not member.unused_data
    return content


def csv_module(data: bytes, delimiter: str = ",") -> Rows:
    header, *rows = csv.reader(io.StringIO(data.decode(), newline=""), delimiter=delimiter, strict=True)
    return header, rows


def csv_pandas(data: bytes, delimiter: str = ",") -> Rows:
    frame = pd.read_csv(
        io.BytesIO(data), sep=delimiter, dtype=str, keep_default_na=False, lineterminator="\n", encoding="utf-8"
    )
    return list(frame.columns), frame.to_numpy().tolist()


def csv_arrow(data: bytes) -> Rows:
    """Tells null from empty, as a quoted text is never null to it."""
    header = csv_module(data)[0]
    table = pa.csv.read_csv(
        io.BytesIO(data),
        read_options=pa.csv.ReadOptions(block_size=1 << 24, use_threads=False),
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    return table.column_names, [list(row.values()) for row in table.to_pylist()]


def ndjson(data: bytes) -> Rows:
    lines = data.decode().split("\n")
    assert lines.pop() == ""
    return _objects([_parse(line) for line in lines])


def json_array(data: bytes) -> Rows:
    return _objects(_parse(data.decode()))


def _parse(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_float=Decimal, parse_constant=refuse)


def _objects(objects: list[dict[str, Any]]) -> Rows:
    header = list(objects[0]) if objects else []
    assert all(list(item) == header for item in objects)
    return header, [list(item.values()) for item in objects]


def xlsx_openpyxl(data: bytes, sheet: int = 0) -> Rows:
    book = openpyxl.load_workbook(io.BytesIO(data))
    header, *rows = [[cell.value for cell in row] for row in book.worksheets[sheet].iter_rows()]
    return header, rows


def xlsx_calamine(data: bytes, sheet: int = 0) -> Rows:
    book = python_calamine.CalamineWorkbook.from_filelike(io.BytesIO(data))
    header, *rows = book.get_sheet_by_index(sheet).to_python(skip_empty_area=False)
    return header, rows


def parquet_arrow(data: bytes) -> Rows:
    table = pq.read_table(io.BytesIO(data))
    return table.column_names, [list(row) for row in zip(*(c.to_pylist() for c in table.columns), strict=True)]


def parquet_pandas(data: bytes) -> Rows:
    frame = pd.read_parquet(io.BytesIO(data), dtype_backend="pyarrow")
    rows = frame.astype(object).where(frame.notna(), None).to_numpy().tolist()
    return list(frame.columns), rows
