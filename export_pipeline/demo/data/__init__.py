"""The demo host application's data: making it and loading it.

What belongs here: the one call that fills a database, and the names that others import. What does
not: the tables (schema), the values (contacts, entities, lists, nasty), the loading itself (load).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa
from sqlalchemy import Connection, Table, create_engine, func, inspect, select, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.schema import CreateTable

from export_pipeline.demo.data import contacts as lists
from export_pipeline.demo.data import contacts as people
from export_pipeline.demo.data import schema
from export_pipeline.demo.data.contacts import generate_contacts
from export_pipeline.demo.data.entities import generate_entities
from export_pipeline.demo.data.generator import NASTY_RATE, PINNED_ROWS
from export_pipeline.demo.data.load import load_batches
from export_pipeline.demo.data.organizations import ORGANIZATIONS, Organization

__all__ = [
    "DEFAULT_SEED",
    "NASTY_RATE",
    "ORGANIZATIONS",
    "PINNED_ROWS",
    "DemoDataError",
    "LoadReport",
    "Organization",
    "generate_contacts",
    "generate_entities",
    "load_demo_data",
]
DEFAULT_SEED = 20240229


class DemoDataError(Exception):
    """The demo's data cannot be loaded there; the message says what to do."""


@dataclass(frozen=True)
class LoadReport:
    """What was loaded: rows by table, and how long it took."""

    rows: dict[str, int]
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Rows of all tables a second, indexes included."""
        return sum(self.rows.values()) / self.seconds if self.seconds else 0.0


def load_demo_data(
    engine_url: str | URL,
    *,
    contacts: int = 10_000,
    entities: int = 2_000,
    seed: int = DEFAULT_SEED,
    replace: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> LoadReport:
    """Create the demo's tables and fill them.

    Args:
        engine_url: PostgreSQL or SQLite, as ``EXPORT_SOURCE_URL``.
        contacts: How many contacts.
        entities: How many entities.
        seed: The same seed makes the same rows, on either database.
        replace: Drop the demo's tables first if they are there.
        progress: Told each table and its rows once it is loaded.

    Raises:
        DemoDataError: a table of that name holds rows already and ``replace`` is false, or the
            database is neither PostgreSQL nor SQLite.
    """
    url = _supported(make_url(engine_url))
    began = time.perf_counter()
    _create_tables(url, replace=replace)
    rows: dict[str, int] = {}
    for table, batches in _tables(contacts, entities, seed):
        rows[table.name] = load_batches(url, table, batches)
        if progress is not None:
            progress(table.name, rows[table.name])
    _create_indexes(url)
    return LoadReport(rows, time.perf_counter() - began)


def _tables(contacts: int, entities: int, seed: int) -> Iterable[tuple[Table, Iterable[pa.RecordBatch]]]:
    return (
        (schema.contacts, generate_contacts(contacts, seed)),
        (schema.entities, generate_entities(entities, seed)),
        (schema.contact_tokens, people.generate_tokens(contacts, seed)),
        (schema.contact_emails, people.generate_emails(contacts, seed)),
        (schema.contact_lists, [lists.lists()]),
        (schema.contact_list_members, people.generate_list_members(contacts, seed, lists.list_ids())),
        (schema.contact_field_definitions, [lists.field_definitions()]),
        (schema.contact_segments, [lists.segments()]),
    )


def _supported(url: URL) -> URL:
    backend = url.get_backend_name()
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and url.database not in (None, "", ":memory:"):
        return url
    raise DemoDataError("The demo's data needs postgresql://… or sqlite:///path; give one of them.")


def _create_tables(url: URL, *, replace: bool) -> None:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            if replace:
                schema.metadata.drop_all(connection)
            _refuse_rows(connection)
            # Indexes come last: filling a table that has them takes twice as long.
            for table in schema.metadata.sorted_tables:
                connection.execute(CreateTable(table, if_not_exists=True))
    finally:
        engine.dispose()


def _refuse_rows(connection: Connection) -> None:
    present = set(inspect(connection).get_table_names())
    for table in schema.metadata.sorted_tables:
        if table.name in present and connection.scalar(
            select(func.count()).select_from(table.select().limit(1).subquery())
        ):
            raise DemoDataError(
                f"Table {table.name!r} holds rows already. Use an empty database, or ask to replace the demo's tables."
            )


def _create_indexes(url: URL) -> None:
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            for table in schema.metadata.sorted_tables:
                for index in table.indexes:
                    index.create(connection, checkfirst=True)
            connection.execute(text("ANALYZE"))
    finally:
        engine.dispose()
