"""The demo application's data: its tables, its rows, and how they get into SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain

import adbc_driver_sqlite.dbapi
import pyarrow as pa
from sqlalchemy import Connection, NullPool, Table, create_engine, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.schema import CreateTable

from export_pipeline.demo.data import rows as made
from export_pipeline.demo.data import schema
from export_pipeline.demo.data.generator import ORGANIZATIONS

__all__ = ["DEFAULT_SEED", "ORGANIZATIONS", "DemoDataError", "demo_tables", "fill", "load_demo_data", "load_sqlite"]
DEFAULT_SEED = 20240229


class DemoDataError(Exception):
    """The demo's data cannot be loaded there; the message says what to do."""


def load_demo_data(url: str, *, contacts: int, entities: int, seed: int = DEFAULT_SEED) -> dict[str, int]:
    """Create the demo's tables in a SQLite file and fill them; returns how many rows each has.

    The same seed makes the same rows. ``DemoDataError`` if one of the tables already holds rows.
    """
    return fill(make_url(url), demo_tables(contacts, entities, seed), load_sqlite)


def fill(
    url: URL,
    tables: Mapping[Table, Iterator[pa.RecordBatch]],
    load: Callable[[URL, Table, Iterator[pa.RecordBatch]], int],
) -> dict[str, int]:
    """Create the demo's tables and ``load`` them; returns how many rows each has."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        _create_tables(connection)
    rows = {table.name: load(url, table, (one for one in batches if one.num_rows)) for table, batches in tables.items()}
    with engine.begin() as connection:
        for table in schema.metadata.sorted_tables:
            for index in table.indexes:
                index.create(connection, checkfirst=True)
        connection.execute(text("ANALYZE"))
    return rows


def demo_tables(contacts: int, entities: int, seed: int) -> dict[Table, Iterator[pa.RecordBatch]]:
    """The rows of each of the demo's tables."""
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


def load_sqlite(url: URL, table: Table, batches: Iterator[pa.RecordBatch]) -> int:
    """Append batches to a table in one transaction and return how many rows it got."""
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
