"""Brings Arrow batches into the demo's tables, as fast as each database allows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import adbc_driver_sqlite.dbapi
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from sqlalchemy import Table
from sqlalchemy.engine import URL

_ESCAPES = (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))


def load_batches(url: URL, table: Table, batches: Iterable[pa.RecordBatch]) -> int:
    """Append batches to a table in one transaction and return how many rows it got."""
    counted = _Counted(batches)
    if url.get_backend_name() == "postgresql":
        _load_postgresql(url, table, counted)
    else:
        _load_sqlite(url, table, counted)
    return counted.rows


class _Counted:
    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = batches
        self.rows = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._batches:
            self.rows += batch.num_rows
            if batch.num_rows:
                yield batch


def _load_postgresql(url: URL, table: Table, batches: Iterable[pa.RecordBatch]) -> None:
    # The text format, because in CSV a line that is only \. ends the data before PostgreSQL 18, even inside quotes.
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    )
    names = [column.name for column in table.columns]
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address) as connection, connection.cursor().copy(statement) as copy:
        for batch in batches:
            copy.write(_copy_text(batch.select(names)))


def _copy_text(batch: pa.RecordBatch) -> bytes:
    parts: list[pa.Array | str] = []
    for column in batch.columns:
        parts += [_escaped(column) if pa.types.is_string(column.type) else column.cast(pa.string()), "\t"]
    parts[-1] = "\n"
    lines = pc.binary_join_element_wise(*parts, "", null_handling="replace", null_replacement="\\N")
    return bytes(lines.buffers()[2])


def _escaped(column: pa.Array) -> pa.Array:
    data = column.buffers()[2]
    content = data.to_pybytes() if data is not None else b""
    for character, escape in _ESCAPES:
        if character.encode() in content:
            column = pc.replace_substring(column, character, escape)
    return column


def _load_sqlite(url: URL, table: Table, batches: Iterable[pa.RecordBatch]) -> None:
    spelled = (_for_sqlite(batch) for batch in batches)
    first = next(spelled, None)
    if first is None:
        return
    reader = pa.RecordBatchReader.from_batches(first.schema, _chain(first, spelled))
    with (
        adbc_driver_sqlite.dbapi.connect(url.database) as connection,
        connection.cursor() as cursor,
    ):
        cursor.adbc_ingest(table.name, reader, mode="append")
        connection.commit()


def _chain(first: pa.RecordBatch, rest: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _for_sqlite(batch: pa.RecordBatch) -> pa.RecordBatch:
    columns = [_sqlite_values(column) for column in batch.columns]
    return pa.record_batch(columns, names=batch.schema.names)


def _sqlite_values(column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("us")).cast(pa.string())
    if pa.types.is_date(column.type):
        return column.cast(pa.string())
    return column.cast(pa.int64()) if pa.types.is_boolean(column.type) else column
