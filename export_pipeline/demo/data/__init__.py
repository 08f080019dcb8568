"""The demo application's data: its tables, its rows, and how they get into PostgreSQL or SQLite."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import adbc_driver_sqlite.dbapi
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
from psycopg import sql
from sqlalchemy import Connection, NullPool, Table, create_engine, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.schema import CreateTable

from export_pipeline.demo.data import rows as made
from export_pipeline.demo.data import schema
from export_pipeline.demo.data.generator import ORGANIZATIONS

__all__ = ["DEFAULT_SEED", "ORGANIZATIONS", "DemoDataError", "LoadReport", "load_batches", "load_demo_data"]
DEFAULT_SEED = 20240229
_ESCAPES = (("\\", "\\\\"), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))
Alter = Callable[[str, Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]]


class DemoDataError(Exception):
    """The demo's data cannot be loaded there; the message says what to do."""


@dataclass(frozen=True)
class LoadReport:
    """What was loaded: rows by table, and how long it took."""

    rows: dict[str, int]
    seconds: float


def load_demo_data(
    engine_url: str | URL,
    *,
    contacts: int = 10_000,
    entities: int = 2_000,
    seed: int = DEFAULT_SEED,
    alter: Alter | None = None,
) -> LoadReport:
    """Create the demo's tables in PostgreSQL or SQLite (a URL as ``EXPORT_SOURCE_URL``) and fill them.

    The same seed makes the same rows, on either database. ``alter`` changes a table's batches before they are loaded,
    given the table's name; for tests.

    Raises:
        DemoDataError: one of the tables already holds rows, or the database is neither PostgreSQL nor SQLite.
    """
    url = make_url(engine_url)
    if url.get_backend_name() == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    elif url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        raise DemoDataError("The demo's data needs postgresql://… or sqlite:///path; give one of them.")
    began = time.perf_counter()
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        _create_tables(connection)
    rows: dict[str, int] = {}
    for table, batches in _tables(contacts, entities, seed).items():
        rows[table.name] = load_batches(url, table, alter(table.name, batches) if alter else batches)
    with engine.begin() as connection:
        for table in schema.metadata.sorted_tables:
            for index in table.indexes:
                index.create(connection, checkfirst=True)
        connection.execute(text("ANALYZE"))
    return LoadReport(rows, time.perf_counter() - began)


def _tables(contacts: int, entities: int, seed: int) -> dict[Table, Iterator[pa.RecordBatch]]:
    return {
        schema.contacts: made.generate_contacts(contacts, seed),
        schema.entities: made.generate_entities(entities, seed),
        schema.contact_tokens: made.generate_tokens(contacts, seed),
        schema.contact_emails: made.generate_emails(contacts, seed),
        schema.contact_lists: iter([made.lists()]),
        schema.contact_list_members: made.generate_list_members(contacts, seed),
        schema.contact_field_definitions: iter([made.field_definitions()]),
        schema.contact_segments: iter([made.segments()]),
    }


def _create_tables(connection: Connection) -> None:
    present = set(inspect(connection).get_table_names())
    for table in schema.metadata.sorted_tables:
        if table.name in present and connection.execute(table.select().limit(1)).first():
            raise DemoDataError(f"Table {table.name!r} already holds rows. Use an empty database.")
        # Indexes come last: filling a table that has them takes twice as long.
        connection.execute(CreateTable(table, if_not_exists=True))


def load_batches(url: URL, table: Table, batches: Iterable[pa.RecordBatch]) -> int:
    """Append batches to a table in one transaction and return how many rows it got."""
    filled = (batch for batch in batches if batch.num_rows)
    load = _load_postgresql if url.get_backend_name() == "postgresql" else _load_sqlite
    return load(url, table, filled)


def _load_postgresql(url: URL, table: Table, batches: Iterator[pa.RecordBatch]) -> int:
    # The text format, because in CSV a line that is only \. ends the data before PostgreSQL 18, even inside quotes.
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)
    )
    names = [column.name for column in table.columns]
    address = url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address) as connection, connection.cursor() as cursor:
        with cursor.copy(statement) as copy:
            for batch in batches:
                copy.write(_copy_text(batch.select(names)))
        return cursor.rowcount


def _copy_text(batch: pa.RecordBatch) -> bytes:
    parts: list[pa.Array | str] = []
    for column in batch.columns:
        values = column.cast(pa.string())
        for character, escape in _ESCAPES if pa.types.is_string(column.type) else ():
            values = pc.replace_substring(values, character, escape)
        parts += [values, "\t"]
    parts[-1] = "\n"
    lines = pc.binary_join_element_wise(*parts, "", null_handling="replace", null_replacement="\\N")
    return bytes(lines.buffers()[2])


def _load_sqlite(url: URL, table: Table, batches: Iterator[pa.RecordBatch]) -> int:
    spelled = (pa.record_batch([*map(_for_sqlite, each.columns)], names=each.schema.names) for each in batches)
    first = next(spelled, None)
    if first is None:
        return 0
    reader = pa.RecordBatchReader.from_batches(first.schema, chain([first], spelled))
    with adbc_driver_sqlite.dbapi.connect(url.database) as connection, connection.cursor() as cursor:
        rows = cursor.adbc_ingest(table.name, reader, mode="append")
        connection.commit()
    return int(rows)


def _for_sqlite(column: pa.Array) -> pa.Array:
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("us")).cast(pa.string())
    if pa.types.is_date(column.type):
        return column.cast(pa.string())
    return column.cast(pa.int64()) if pa.types.is_boolean(column.type) else column
