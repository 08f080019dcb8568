"""What the file shows is what a filter finds: each exported value, asked for, finds exactly the rows that show it.

Behind each declared type stand the column types that compare in another way than their text says: collations that
ignore case, ``real``, padded texts, intervals, numbers and booleans in other types, UUIDs in other spellings.
"""

from __future__ import annotations

import json
import operator as python
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.catalog.model import Column, Dataset
from export_pipeline.catalog.types import ColumnType, OutputColumn
from export_pipeline.filters.json_filters import parse_filters
from export_pipeline.filters.tree import AllOf
from export_pipeline.formats import open_format
from export_pipeline.formats.base import NO_CEILING, FormatOptions
from export_pipeline.source import open_snapshot
from export_pipeline.source.compiler import ConditionCompiler, table_clause
from export_pipeline.source.dialects import dialect_of
from export_pipeline.source.lookups import rows_of
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source
from export_pipeline_tests.servers.mariadb import MariadbServer
from export_pipeline_tests.servers.postgres import PostgresServer

TEXTS = ["Ana", "ANA", "ana", "ána", "ana ", " ana", "", "a%b_c", "\\", "5", "05", "5.0", "日本", "ß", "ss", "ab", None]
WORDS = ["Ana", "ANA", "ana", "ana ", "ab", "ab  ", None]
NUMBERS = ["11.4", "0.1", "0.3", "1234567", "16777216", "16777217", "-7.5", "0", "1e-7", "3.4e30", "100", "99.99", None]
DECIMALS = [
    "0.1",
    "0.30000000000000004",
    "12345678901234567.89",
    "12345678901234567.88",
    "-12345678901234567.88",
    "1.50",
    "9999999999999999999",
    "10000000000000000000",
    "0",
    None,
]
INTEGERS = ["5", "0", "-3", "9007199254740993", "9007199254740992", "9223372036854775807", None]
INSTANTS = ["2026-03-08 01:30:00", "2026-03-08 01:30:00.000001", "2026-03-08 23:59:59.999999", "1969-07-20 20:17:40"]
SPELLED = [
    "2026-03-08T01:30:00Z",
    "2026-03-08 01:30:00.000000",
    "2026-03-07T22:30:00-03:00",
    "2026-03-07 22:30:00-03",
    "2026-03-08T01:30:00.1+00:00",
]
DAYS = ["2026-03-08", "2026-03-07", "2024-02-29", "1969-12-31", None]
UUID_A, UUID_B = "6f0c1a52-3a7e-4c0b-9d51-0b6a2f4e7a01", "1d9e8b34-52c6-4f7d-8a10-7c3b9e5d2f02"
UUIDS = [UUID_A, UUID_B, UUID_A, None]
UUID_TEXTS = [UUID_A, UUID_A.upper(), UUID_A.replace("-", ""), UUID_A.replace("-", "").upper(), UUID_B, None]
FLAGS = ["true", "false", None]
BITS = ["1", "0", "2", None]
COLUMNS: dict[str, list[tuple[str, str, list[Any]]]] = {
    "postgresql": [
        ("text", "text", TEXTS),
        ("text", "varchar(20)", TEXTS),
        ("text", "char(5)", WORDS),
        ("text", "interval", ["1 mon", "30 days", "720:00:00", "1 mon", None]),
        ("text", "mood", ["happy", "Happy", None]),
        ("text", "integer", ["5", "7", None]),
        ("text", "real", NUMBERS),
        ("text", "boolean", FLAGS),
        ("text", "date", DAYS),
        ("float", "real", NUMBERS),
        ("float", "double precision", NUMBERS),
        ("float", "numeric", NUMBERS),
        ("float", "integer", ["5", "0", "16777217", None]),
        ("decimal", "numeric", DECIMALS),
        ("decimal", "numeric(30, 6)", DECIMALS),
        ("decimal", "real", NUMBERS),
        ("decimal", "double precision", NUMBERS),
        ("decimal", "bigint", INTEGERS),
        ("integer", "bigint", INTEGERS),
        ("integer", "smallint", ["5", "0", "-3", None]),
        ("boolean", "boolean", FLAGS),
        ("timestamp", "timestamptz", INSTANTS),
        ("timestamp", "timestamp", INSTANTS),
        ("date", "date", DAYS),
        ("uuid", "uuid", UUIDS),
        ("uuid", "text", UUID_TEXTS),
        ("uuid", "char(36)", UUID_TEXTS),
    ],
    "sqlite": [
        ("text", "TEXT", TEXTS),
        ("text", "TEXT COLLATE NOCASE", TEXTS),
        ("text", "TEXT COLLATE RTRIM", TEXTS),
        ("text", "", [*TEXTS, 5, 7.5]),
        ("text", "INTEGER", [5, "05", 7, "x", None]),
        ("text", "REAL", [5, 0.1, 19.99, 0.30000000000000004, None]),
        ("float", "REAL", [float(number) if number else None for number in NUMBERS]),
        ("float", "INTEGER", [5, 0, 7.5, None]),
        ("decimal", "TEXT", DECIMALS),
        ("decimal", "TEXT COLLATE NOCASE", DECIMALS),
        ("decimal", "NUMERIC", [0.1, 0.30000000000000004, 1234567890.123456, 2500000000000000.5, 5, None]),
        ("integer", "INTEGER", [int(number) if number else None for number in INTEGERS]),
        ("boolean", "INTEGER", [1, 0, None]),
        ("timestamp", "TEXT", [*INSTANTS, *SPELLED, None]),
        ("timestamp", "TEXT COLLATE NOCASE", [*INSTANTS, *SPELLED, None]),
        ("date", "TEXT", DAYS),
        ("uuid", "TEXT", UUID_TEXTS),
        ("uuid", "TEXT COLLATE NOCASE", UUID_TEXTS),
    ],
    "mariadb": [
        ("text", "varchar(20)", TEXTS),
        ("text", "varchar(20) character set latin1", WORDS),
        ("text", "char(5)", WORDS),
        ("text", "int", ["5", "7", None]),
        ("text", "enum('happy', 'sad')", ["happy", "sad", None]),
        ("float", "float", NUMBERS),
        ("float", "double", NUMBERS),
        ("float", "decimal(45, 10)", NUMBERS),
        ("decimal", "decimal(40, 10)", [number for number in DECIMALS if number != "0.30000000000000004"]),
        ("decimal", "float", NUMBERS),
        ("decimal", "double", NUMBERS),
        ("integer", "bigint", INTEGERS),
        ("boolean", "boolean", ["1", "0", None]),
        ("timestamp", "datetime(6)", INSTANTS),
        ("timestamp", "timestamp(6) null", INSTANTS[:3]),
        ("date", "date", DAYS),
        ("uuid", "uuid", UUIDS),
        ("uuid", "char(36)", UUID_TEXTS),
    ],
}
PREPARE = ["CREATE TYPE mood AS ENUM ('happy', 'Happy')"]
PREPARE_ICU = [
    "CREATE EXTENSION citext",
    "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
]
ICU: list[tuple[str, str, list[Any]]] = [
    ("text", "text COLLATE nocase", TEXTS),
    ("text", "citext", TEXTS),
    ("uuid", "citext", UUID_TEXTS),
    ("decimal", "real", NUMBERS),
]


@dataclass(frozen=True)
class Zoo:
    """One table with all the columns of a database, and what a file shows of it."""

    source: Source
    dataset: Dataset
    shown: dict[str, list[Any]]


@pytest.fixture(
    scope="module",
    params=[
        "postgresql",
        pytest.param("postgresql 18", marks=pytest.mark.slow),
        "postgresql icu",
        "sqlite",
        pytest.param("sqlite shared", marks=pytest.mark.slow),
        "mariadb",
    ],
)
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zoo]:
    if request.param in ("sqlite", "sqlite shared"):
        path: Path = tmp_path_factory.mktemp("zoo") / "zoo.db"
        yield _made(Source(f"sqlite:///{path}", shares_file=request.param == "sqlite shared"), COLUMNS["sqlite"])
    elif request.param == "mariadb":
        server: MariadbServer = request.getfixturevalue("mariadb_server")
        with server.fresh_database() as url:
            yield _made(Source(url), COLUMNS["mariadb"])
    elif request.param == "postgresql icu":
        icu: PostgresServer = request.getfixturevalue("icu_server")
        with icu.fresh_database() as url:
            yield _made(Source(url.replace("postgresql://", "postgresql+psycopg://")), ICU, PREPARE_ICU)
    else:
        later = request.param == "postgresql 18"
        postgres: PostgresServer = request.getfixturevalue("postgres18_server" if later else "postgres_server")
        with postgres.fresh_database() as url:
            made = Source(url.replace("postgresql://", "postgresql+psycopg://"))
            yield _made(made, COLUMNS["postgresql"], PREPARE)


def _made(source: Source, columns: list[tuple[str, str, list[Any]]], prepare: Sequence[str] = ()) -> Zoo:
    names = [f"c{at}" for at in range(len(columns))]
    fields = [{"name": name, "type": kind} for name, (kind, _, _) in zip(names, columns, strict=True)]
    dataset = parse_dataset(
        json.dumps(
            {
                "name": "zoo",
                "title": "Zoo",
                "table": "zoo",
                "tenant": "organization_id",
                "key": "id",
                "columns": [{"name": "id", "type": "integer"}, *fields],
            }
        )
    )
    types = [f"{name} {kind}" for name, (_, kind, _) in zip(names, columns, strict=True)]
    engine = sa.create_engine(source.url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        if source.backend == "mariadb":
            connection.exec_driver_sql("SET time_zone = '+00:00'")
        for statement in [*prepare, f"CREATE TABLE zoo (id bigint, organization_id varchar(20), {', '.join(types)})"]:
            connection.exec_driver_sql(statement)
        given = [_given(name, kind, source.backend) for name, (_, kind, _) in zip(names, columns, strict=True)]
        for number in range(max(len(values) for _, _, values in columns)):
            row = {name: values[number % len(values)] for name, (_, _, values) in zip(names, columns, strict=True)}
            insert = sa.text(f"INSERT INTO zoo VALUES ({number}, 'acme', {', '.join(given)})")
            connection.execute(insert, row)
    engine.dispose()
    return Zoo(source, dataset, _shown(source, dataset))


def _given(name: str, kind: str, backend: str) -> str:
    """A value of the test, which are texts for the most part, in the type of its column."""
    return f"CAST(CAST(:{name} AS text) AS {kind.partition(' COLLATE')[0]})" if backend == "postgresql" else f":{name}"


def _shown(source: Source, dataset: Dataset) -> dict[str, list[Any]]:
    """What an ndjson file shows: a list of values for each column."""
    columns = tuple(OutputColumn(column.name, column.name, column.type) for column in dataset.columns)
    written = open_format("ndjson", FormatOptions(columns=columns, max_bytes=NO_CEILING))
    sink = BytesIO()
    file = written.open(sink)
    with open_snapshot(
        source, build_query(Selection(dataset, "acme", dataset.columns, AllOf(())), source.backend)
    ) as s:
        for batch in s.batches:
            file.write(written.encode(batch, Counter()), 0)
    file.close()
    rows = [json.loads(line, parse_float=str) for line in sink.getvalue().splitlines()]
    return {column.name: [row[column.name] for row in rows] for column in dataset.columns}


def _meant(kind: ColumnType, shown: Any) -> Any:
    """What a shown value is, for Python to compare."""
    if shown is None:
        return None
    if kind in (ColumnType.FLOAT, ColumnType.DECIMAL):
        return Decimal(str(shown))
    return shown.replace("-", "").lower() if kind is ColumnType.UUID else shown


def _filters(column: Column, shown: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    value = float(shown) if column.type is ColumnType.FLOAT else shown
    for operator in column.operators:
        if operator in ("in", "nin"):
            yield operator, {operator: [value]}
        elif operator == "between":
            yield operator, {"between": [value, value]}
        elif operator != "is_null":
            yield operator, {operator: value}
    if "gte" in column.operators:
        yield "eq", {"gte": value, "lte": value}


PYTHON: dict[str, Callable[[Any, Any], Any]] = {
    "eq": python.eq,
    "in": python.eq,
    "between": python.eq,
    "gt": python.gt,
    "gte": python.ge,
    "lt": python.lt,
    "lte": python.le,
    "contains": python.contains,
    "starts_with": lambda text, start: text.startswith(start),
}


def _holds(operator: str, actual: Any, value: Any) -> bool:
    if operator in ("ne", "nin"):
        return bool(actual != value)
    return actual is not None and bool(PYTHON[operator](actual, value))


def test_every_exported_value_finds_exactly_the_rows_that_show_it(zoo: Zoo) -> None:
    table = table_clause("zoo", ["organization_id", *[column.source for column in zoo.dataset.columns]])
    compiler = ConditionCompiler(table, zoo.dataset, "acme", dialect_of(zoo.source.backend))
    differences = []
    for column in zoo.dataset.columns:
        meant = [_meant(column.type, one) for one in zoo.shown[column.name]]
        cases = [
            (filters, [_holds(operator, actual, _meant(column.type, value)) for actual in meant])
            for value in dict.fromkeys(zoo.shown[column.name])
            if value is not None
            for operator, filters in _filters(column, value)
        ]
        assert cases, "every column holds a value"
        conditions = [compiler.condition(parse_filters({column.name: one}, zoo.dataset, "UTC")) for one, _ in cases]
        texts = [
            sa.cast(sa.case((condition, 1), else_=0), sa.Text).label(f"c{at}")
            for at, condition in enumerate(conditions)
        ]
        rows = rows_of(zoo.source, sa.select(*texts).order_by(table.c.id), [f"c{at}" for at in range(len(texts))])
        for at, (filters, expected) in enumerate(cases):
            found = [row[at] == "1" for row in rows]
            if found != expected:
                differences.append((column.name, column.type, filters, found, expected))
    assert differences == []
    assert rows


def test_a_filter_of_a_request_finds_the_rows_that_show_its_value(zoo: Zoo) -> None:
    for column in zoo.dataset.columns:
        value = next(one for one in zoo.shown[column.name] if one is not None)
        asked = {column.name: float(value) if column.type is ColumnType.FLOAT else value}
        chosen = Selection(zoo.dataset, "acme", (column,), parse_filters(asked, zoo.dataset, "UTC"))
        with open_snapshot(zoo.source, build_query(chosen, zoo.source.backend)) as snapshot:
            found = [row for batch in snapshot.batches for row in batch[zoo.dataset.key].to_pylist()]
        meant = [_meant(column.type, one) for one in zoo.shown[column.name]]
        assert found == [at for at, one in enumerate(meant) if one == _meant(column.type, value)], column
