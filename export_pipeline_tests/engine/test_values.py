"""The gate for values: what comes out of a source is what is in it, or the export is refused and the column named."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.catalog.model import CustomField, Dataset
from export_pipeline.catalog.types import ColumnType
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.json_filters import parse_filters
from export_pipeline.filters.tree import AllOf
from export_pipeline.source import open_snapshot
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import FETCH_BYTES, Source
from export_pipeline.source.readers.arrow_types import staged_schema, to_staged
from export_pipeline.source.readers.generic import snapshot as pandas_snapshot
from export_pipeline_tests.engine.people import CONTACTS
from export_pipeline_tests.servers.mariadb import MariadbServer
from export_pipeline_tests.servers.postgres import PostgresServer

SQLITES = pytest.mark.parametrize("shares_file", [True, False], ids=["shared", "own file"])


def dataset_of(*columns: tuple[str, str], table: str = "t") -> Dataset:
    """A dataset of these columns (name, type) of ``t``."""
    declared = "".join(f"  - {{name: {name}, type: {kind}}}\n" for name, kind in columns)
    head = f"name: t\ntitle: T\ntable: {table}\ntenant: org\nkey: id\ncolumns:\n  - {{name: id, type: integer}}\n"
    return parse_dataset(head + declared)


def values(source: Source, dataset: Dataset, filters: dict[str, Any] | None = None) -> list[tuple[Any, ...]]:
    """What the columns of the dataset but its key hold."""
    chosen = parse_filters(filters or {}, dataset, "UTC")
    query = build_query(Selection(dataset, "acme", dataset.columns, chosen), source.backend)
    with open_snapshot(source, query) as snapshot:
        rows = [tuple(row.values())[1:] for batch in snapshot.batches for row in batch.to_pylist()]
    assert len(rows) == snapshot.row_count
    return rows


def refusal(source: Source, dataset: Dataset, filters: dict[str, Any] | None = None) -> ExportFailure:
    with pytest.raises(ExportFailure) as failed:
        values(source, dataset, filters)
    return failed.value


# The gate itself

LAST = datetime.max.replace(tzinfo=UTC)
T_US = pa.timestamp("us", tz="UTC")
REFUSED = [
    ("text", pa.array([b"\xff"])),
    ("text", pa.array([b"Jos\xe9"]).view(pa.string())),
    ("text", pa.array([b"a\xc3", b"\xa9b"]).view(pa.string())),
    ("uuid", pa.array(["not one"])),
    ("uuid", pa.array([bytes(range(65, 81))])),
    ("json", pa.array(["{"])),
    ("decimal", pa.array(["$1,234.50"])),
    ("decimal", pa.array(["Infinit"])),
    ("integer", pa.array([1.5])),
    ("integer", pa.array([2.0**53])),
    ("integer", pa.array([Decimal("1.5")])),
    ("integer", pa.array([2**63], pa.uint64())),
    ("integer", pa.array([0], T_US)),
    ("integer", pa.array([0], pa.time64("us"))),
    ("integer", pa.array([0], pa.duration("us"))),
    ("integer", pa.array([True])),
    ("integer", pa.array([b"\x05"])),
    ("float", pa.array([2**53 + 1])),
    ("float", pa.array(["high"])),
    ("boolean", pa.array([0.5])),
    ("boolean", pa.array(["true"])),
    ("timestamp", pa.array([1_700_000_000])),
    ("timestamp", pa.array([0], pa.time64("us"))),
    ("timestamp", pa.array(["soon"])),
    ("timestamp", pa.array([2**63 - 1]).cast(T_US)),
    ("timestamp", pa.array([-(2**63)]).cast(T_US)),
    ("timestamp", pa.array([253_402_300_800_000_000]).cast(T_US)),
    ("date", pa.array([19_000])),
    ("date", pa.array([0], T_US)),
    ("date", pa.array([datetime(2024, 3, 31, 10)])),  # noqa: DTZ001 - as a database without zones has it
    ("date", pa.array([2**31 - 1], pa.int32()).cast(pa.date32())),
    ("date", pa.array([-(2**31)], pa.int32()).cast(pa.date32())),
    ("date", pa.array([2_932_897], pa.int32()).cast(pa.date32())),
]
TAKEN = [
    ("text", pa.array([b"Jos\xc3\xa9"]), "José"),
    ("integer", pa.array([5.0]), 5),
    ("integer", pa.array([Decimal(9_007_199_254_740_993)]), 9_007_199_254_740_993),
    ("integer", pa.array(["-7"]), -7),
    ("float", pa.array([11.4], pa.float32()), 11.4),
    ("float", pa.array([2**53]), 2.0**53),
    ("decimal", pa.array([" +007.50 "]), " +007.50 "),
    ("decimal", pa.array(["NaN"]), "NaN"),
    ("boolean", pa.array([1]), True),
    ("uuid", pa.array(["6F0C1A52-3A7E-4C0B-9D51-0B6A2F4E7A01"]), "6F0C1A52-3A7E-4C0B-9D51-0B6A2F4E7A01"),
    ("json", pa.array(["9" * 5000]), "9" * 5000),
    ("timestamp", pa.array([date(2024, 3, 31)]), datetime(2024, 3, 31, tzinfo=UTC)),
    ("timestamp", pa.array([LAST]), LAST),
    ("date", pa.array([datetime(2024, 3, 31)]), date(2024, 3, 31)),  # noqa: DTZ001 - see above
    ("date", pa.array([date.min]), date.min),
]


def staged(kind: str, array: pa.Array) -> Any:
    columns = [dataset_of(("v", kind)).columns[1]]
    return to_staged(pa.record_batch([array], names=["v"]), columns, staged_schema(columns)).to_pylist()[0]["v"]


@pytest.mark.parametrize(
    ("kind", "array"), REFUSED, ids=[f"{kind}-{array.type}-{at}" for at, (kind, array) in enumerate(REFUSED)]
)
def test_a_value_that_would_become_another_is_refused_and_its_column_named(kind: str, array: pa.Array) -> None:
    with pytest.raises(ExportFailure, match="Column v ") as failed:
        staged(kind, array)
    assert failed.value.code is FailureCode.SOURCE_DATA_INVALID


@pytest.mark.parametrize(("kind", "array", "wanted"), TAKEN, ids=[f"{kind}-{array.type}" for kind, array, _ in TAKEN])
def test_a_value_that_is_the_same_in_the_declared_type_is_taken(kind: str, array: pa.Array, wanted: Any) -> None:
    assert staged(kind, array) == wanted


# PostgreSQL


@pytest.fixture(params=["postgresql", pytest.param("postgresql 18", marks=pytest.mark.slow)], scope="module")
def server(request: pytest.FixtureRequest) -> PostgresServer:
    fixture = "postgres_server" if request.param == "postgresql" else "postgres18_server"
    made: PostgresServer = request.getfixturevalue(fixture)
    return made


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    with server.fresh_database() as fresh:
        yield fresh


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


HOSTILE = {
    "client_encoding": "LATIN1",
    "datestyle": "'SQL, DMY'",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "0",
    "timezone": "'America/Sao_Paulo'",
    "lock_timeout": "1000",
    "statement_timeout": "2000",
    "default_transaction_isolation": "'read committed'",
}


@pytest.mark.parametrize("encoding", ["UTF8", "LATIN1", "SQL_ASCII"])
def test_the_meaning_of_values_does_not_depend_on_the_servers_settings(
    server: PostgresServer, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGDATESTYLE", "German")
    name = f"encoded_{encoding.lower()}"
    run(
        server.admin_url, f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    url = server.url(name)
    try:
        with psycopg.connect(url, client_encoding="UTF8", autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE t AS SELECT 1 AS id, 'acme'::text AS org, 'Zoé ñ'::text AS v, date '2024-03-31' AS d, "
                "timestamp '2024-03-31 10:00' AS at, interval '1 day 2 hours' AS i, '\\xff00'::bytea AS b, "
                "0.30000000000000004::float8 AS f"
            )
            for setting, value in HOSTILE.items():
                connection.execute(f"ALTER DATABASE {name} SET {setting} = {value}".encode())
        dataset = dataset_of(
            ("v", "text"), ("d", "text"), ("at", "timestamp"), ("i", "text"), ("b", "text"), ("f", "decimal")
        )
        source = Source(f"{url}?client_encoding=latin1")
        moment = datetime(2024, 3, 31, 10, tzinfo=UTC)
        wanted = [("Zoé ñ", "2024-03-31", moment, "1 day 02:00:00", "\\xff00", "0.30000000000000004")]
        assert values(source, dataset) == wanted
        assert values(source, dataset, {"v": {"contains": "é"}}) == wanted
    finally:
        run(server.admin_url, f"DROP DATABASE {name} WITH (FORCE)")


def test_bytes_that_are_no_utf_8_in_a_database_without_an_encoding_are_refused(server: PostgresServer) -> None:
    run(server.admin_url, "CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    try:
        run(server.url("ascii"), "CREATE TABLE t AS SELECT 1 AS id, 'acme'::text AS org, E'Jos\\351'::text AS v")
        failed = refusal(Source(server.url("ascii")), dataset_of(("v", "text")))
    finally:
        run(server.admin_url, "DROP DATABASE ascii WITH (FORCE)")
    assert failed.code is FailureCode.SOURCE_DATA_INVALID
    assert "UTF-8" in failed.message


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("1234.5::money", "float"),
        ("1234.5::money", "integer"),
        ("1234.5::money", "decimal"),
        ("4294967295::oid", "integer"),
        ("1700000000::bigint", "timestamp"),
        ("19000::int", "date"),
        ("now()", "integer"),
        ("now()", "date"),
        ("now()::time", "integer"),
        ("true", "integer"),
        ("'{}'::text[]", "json"),
        ("'\\xff'::bytea", "uuid"),
        ("'x'::text", "uuid"),
        ("'x'::text", "json"),
        ("''::text", "json"),
        ("'x'::text", "decimal"),
        ("date 'infinity'", "date"),
        ("timestamptz '-infinity'", "timestamp"),
        ("timestamp '294276-12-31'", "timestamp"),
        ("date '0044-03-15 BC'", "date"),
    ],
)
def test_what_postgresql_has_and_the_declared_type_is_not_is_refused(url: str, value: str, kind: str) -> None:
    run(url, f"CREATE TABLE t AS SELECT 1 AS id, 'acme'::text AS org, {value} AS v")
    failed = refusal(Source(url), dataset_of(("v", kind)))
    assert failed.code is FailureCode.SOURCE_DATA_INVALID
    assert "Column v " in failed.message


def test_what_postgresql_has_and_the_declared_type_allows_is_read(url: str) -> None:
    run(
        url,
        "CREATE TYPE mood AS ENUM ('happy')",
        "CREATE DOMAIN price AS numeric",
        "CREATE TABLE t AS SELECT 1 AS id, 'acme'::text AS org, 11.4::real AS r, 0.1::real AS tenth, 11.4::real AS rd, "
        "5::numeric AS n, 'happy'::mood AS m, 1.50::price AS p, '7'::text AS seven, '{1,2}'::int[] AS a",
    )
    dataset = dataset_of(
        ("r", "float"), ("tenth", "float"), ("rd", "decimal"), ("n", "integer"), ("m", "text"), ("p", "decimal"),
        ("seven", "integer"), ("a", "text"),
    )  # fmt: skip
    assert values(Source(url), dataset) == [(11.4, 0.1, "11.4", 5, "happy", "1.50", 7, "{1,2}")]


def test_rows_that_row_level_security_hides_are_not_passed_over(url: str) -> None:
    run(
        url,
        "CREATE TABLE t AS SELECT n AS id, 'acme'::text AS org, 'x'::text AS v FROM generate_series(1, 20) n",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY tenth ON t USING (id % 10 = 0)",
        "DROP ROLE IF EXISTS reader",
        "CREATE ROLE reader LOGIN PASSWORD 'a b''%'",
        "GRANT SELECT ON t TO reader",
    )
    as_reader = sa.make_url(url).set(username="reader", password="a b'%").render_as_string(hide_password=False)
    failed = refusal(Source(as_reader), dataset_of(("v", "text")))
    assert failed.code is FailureCode.SOURCE_REFUSED
    assert "Row-level security" in failed.message
    assert '"t"' in failed.message
    assert "EXPORT_SOURCE_ROW_SECURITY" in failed.message
    assert len(values(Source(as_reader, row_security=True), dataset_of(("v", "text")))) == 2
    run(url, "REVOKE SELECT ON t FROM reader")
    denied = refusal(Source(as_reader, row_security=True), dataset_of(("v", "text")))
    assert (denied.code, "permission denied for table t" in denied.message) == (FailureCode.SOURCE_REFUSED, True)
    run(url, "DROP OWNED BY reader", "DROP ROLE reader")


def test_a_refusal_names_the_column_or_the_table(url: str) -> None:
    run(
        url,
        "CREATE TYPE mood AS ENUM ('happy')",
        "CREATE TABLE t AS SELECT 1 AS id, 'acme'::text AS org, 'happy'::mood AS m, 1::money AS price, ''::text AS j",
        "CREATE VIEW divides AS SELECT id, org, id / (id - 1) AS v FROM t",
    )
    source = Source(url)
    missing = refusal(source, dataset_of(("nope", "text")))
    assert (missing.code, "nope" in missing.message) == (FailureCode.SOURCE_REFUSED, True)
    table = refusal(source, dataset_of(("v", "text"), table="gone"))
    assert (table.code, '"gone"' in table.message) == (FailureCode.SOURCE_REFUSED, True)
    assert values(source, dataset_of(("m", "text")), {"m": "sad"}) == []
    money = refusal(source, dataset_of(("price", "decimal"), ("m", "text")), {"price": {"gt": "3"}, "m": "happy"})
    assert (money.code, "at price" in money.message) == (FailureCode.SOURCE_REFUSED, True)
    divided = refusal(source, dataset_of(("v", "integer"), table="divides"))
    assert (divided.code, "22012" in divided.message) == (FailureCode.SOURCE_DATA_INVALID, True)


@pytest.mark.parametrize("change", [{"password": "no"}, {"username": "nobody"}, {"database": "none"}])
def test_a_login_that_is_refused_is_not_tried_again(url: str, change: dict[str, str]) -> None:
    wrong = sa.make_url(url).set(**change).render_as_string(hide_password=False)  # type: ignore[arg-type]
    failed = refusal(Source(wrong), dataset_of(("v", "text")))
    assert failed.code is FailureCode.SOURCE_REFUSED
    assert "login" in failed.message


def test_an_export_takes_one_connection_and_its_session_has_ends(url: str) -> None:
    names = ("idle_in_transaction_session_timeout", "lock_timeout", "tcp_user_timeout", "row_security")
    shown = ", ".join(f"current_setting('{name}') AS {name}" for name in names)
    run(
        url,
        "CREATE SCHEMA app",
        f"CREATE VIEW app.t AS SELECT 1 AS id, 'acme'::text AS org, {shown}, (SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND backend_type = 'client backend' AND query LIKE '%FROM t%')::text AS n",
    )
    source = Source(f"{url}?options=-c%20search_path%3Dapp")
    dataset = dataset_of(*((name, "text") for name in (*names, "n")))
    assert values(source, dataset)[0][:1] + values(source, dataset)[0][3:] == ("1min", "off", "1")


# SQLite


def sqlite_source(path: Path, shares_file: bool, kind: str, found: Sequence[Any], *, affinity: str = "") -> Source:
    """``t`` with these values in ``v``, in a column of this affinity; ``kind`` is only for messages."""
    del kind
    file = path / "t.db"
    file.unlink(missing_ok=True)
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(f"CREATE TABLE t (id integer PRIMARY KEY, org text, v {affinity})")
        connection.executemany(
            "INSERT INTO t VALUES (?, 'acme', ?)", [(at, value) for at, value in enumerate(found, start=1)]
        )
    return Source(f"sqlite:///{file}", shares_file=shares_file)


@SQLITES
@pytest.mark.parametrize("filler", [0, 3000], ids=["at once", "after many rows"])
@pytest.mark.parametrize(
    ("kind", "value", "usual"),
    [
        ("integer", 19.99, 1),
        ("integer", "x", 1),
        ("integer", b"\xff", 1),
        ("boolean", 0.5, 1),
        ("boolean", "yes", 1),
        ("float", "high", 1.5),
        ("float", 2**53 + 1, 1.5),
        ("timestamp", 1_700_000_000, "2026-01-01 00:00:00"),
        ("date", 19_000, "2026-01-01"),
        ("uuid", b"o\x0c\x1aR:~L\x0b\x9dQ\x0bj/Nz\x01", "6f0c1a52-3a7e-4c0b-9d51-0b6a2f4e7a01"),
        ("text", b"\xff\x00", "x"),
        ("json", b"\xff", "{}"),
        ("decimal", "1,5", "1.5"),
    ],
)
def test_what_sqlite_has_and_the_declared_type_is_not_is_refused(
    tmp_path: Path, shares_file: bool, filler: int, kind: str, value: Any, usual: Any
) -> None:
    source = sqlite_source(tmp_path, shares_file, kind, [*[usual] * filler, value])
    failed = refusal(source, dataset_of(("v", kind)))
    assert failed.code is FailureCode.SOURCE_DATA_INVALID
    assert "Column v " in failed.message


@SQLITES
def test_text_of_sqlite_that_is_no_utf_8_is_refused(tmp_path: Path, shares_file: bool) -> None:
    source = sqlite_source(tmp_path, shares_file, "text", [None])
    with closing(sqlite3.connect(tmp_path / "t.db")) as connection, connection:
        connection.execute("UPDATE t SET v = CAST(x'4aff' AS text)")
    assert "Column v " in refusal(source, dataset_of(("v", "text"))).message


@SQLITES
@pytest.mark.parametrize(
    ("kind", "found", "wanted"),
    [
        ("integer", [9_007_199_254_740_993, 7], None),
        ("integer", [7, 1.0], [7, 1]),
        ("float", [1234567.89, 5], [1234567.89, 5.0]),
        ("decimal", [0.30000000000000004, 1234567890.123456, 2500000000000000.5, 7, "1.50"], None),
        ("decimal", [1234567.89, "5"], None),
        ("text", [1.5, 7, "x", b"Jos\xc3\xa9"], ["1.5", "7", "x", "José"]),
    ],
)
def test_numbers_of_sqlite_keep_their_digits(
    tmp_path: Path, shares_file: bool, kind: str, found: list[Any], wanted: list[Any] | None
) -> None:
    source = sqlite_source(tmp_path, shares_file, kind, found)
    read = [value for (value,) in values(source, dataset_of(("v", kind)))]
    if kind == "decimal":
        assert [float(value) for value in read] == [float(value) for value in found]
    else:
        assert read == (wanted or found)


_DOUBLES = st.floats(min_value=1e-80, max_value=1e80)


@SQLITES
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(found=st.lists(_DOUBLES | _DOUBLES.map(lambda value: -value) | st.just(0.0), min_size=1, max_size=20))
def test_every_double_of_sqlite_comes_back_from_its_digits(
    tmp_path: Path, shares_file: bool, found: list[float]
) -> None:
    """Up to 80 digits: beyond them the printf of SQLite 3.40 rounds some doubles to a neighbour."""
    source = sqlite_source(tmp_path, shares_file, "decimal", found, affinity="real")
    assert [float(value) for (value,) in values(source, dataset_of(("v", "decimal")))] == found


@SQLITES
def test_custom_fields_whose_names_differ_by_case_are_two(tmp_path: Path, shares_file: bool) -> None:
    file = tmp_path / "t.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE people (id integer, organization_id text, custom_fields text)")
        connection.execute("""INSERT INTO people VALUES (1, 'acme', '{"Age": "upper", "age": "lower"}')""")
    column = CONTACTS.column("custom_fields")
    assert column is not None
    fields = (CustomField(column, "Age", ColumnType.TEXT), CustomField(column, "age", ColumnType.TEXT))
    query = build_query(Selection(CONTACTS, "acme", fields, AllOf(())), "sqlite")
    with open_snapshot(Source(f"sqlite:///{file}", shares_file=shares_file), query) as snapshot:
        (row,) = [row for batch in snapshot.batches for row in batch.to_pylist()]
    assert list(row.values())[:2] == ["upper", "lower"]


@SQLITES
def test_fat_rows_of_sqlite_are_read_few_at_a_time(tmp_path: Path, shares_file: bool) -> None:
    source = sqlite_source(tmp_path, shares_file, "text", [*["thin"] * 2000, *["x" * 1_000_000] * 100])
    assert_bounded(source)


def assert_bounded(source: Source) -> None:
    dataset = dataset_of(("v", "text"))
    query = build_query(Selection(dataset, "acme", dataset.columns, AllOf(())), source.backend)
    with open_snapshot(source, query) as snapshot:
        weights = [batch.nbytes for batch in snapshot.batches]
    assert sum(weights) > 100_000_000
    assert max(weights) < 4 * FETCH_BYTES


# MariaDB


@pytest.fixture
def mariadb_url(mariadb_server: MariadbServer) -> Iterator[str]:
    with mariadb_server.fresh_database() as fresh:
        yield fresh


def run_mariadb(url: str, *statements: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def test_what_mariadb_has_comes_whole_or_is_refused(mariadb_url: str) -> None:
    run_mariadb(
        mariadb_url,
        "CREATE TABLE t (id int, org varchar(10), u binary(16), bytes blob, words varbinary(20), latin varchar(9) "
        "character set latin1, f float, fd float, ft float, big decimal(20, 0), bits bit(8), epoch bigint, day int)",
        "INSERT INTO t VALUES (1, 'acme', unhex('6f0c1a523a7e4c0b9d510b6a2f4e7a01'), unhex('ff00'), 'é日', 'é', "
        "1234567, 11.4, 0.1, 9007199254740993, b'101', 1700000000, 19000)",
        "CREATE VIEW sums AS SELECT id, org, sum(big) AS big FROM t GROUP BY id, org",
    )
    source = Source(mariadb_url)
    for name, kind in (
        ("u", "uuid"), ("u", "text"), ("u", "integer"), ("bytes", "text"), ("bytes", "json"), ("bits", "text"),
        ("bits", "integer"), ("bits", "boolean"), ("epoch", "timestamp"), ("day", "date"),
    ):  # fmt: skip
        failed = refusal(source, dataset_of((name, kind)))
        assert (failed.code, f"Column {name} " in failed.message) == (FailureCode.SOURCE_DATA_INVALID, True), (
            name,
            kind,
        )
    dataset = dataset_of(
        ("words", "text"), ("latin", "text"), ("f", "float"), ("fd", "decimal"), ("ft", "text"), ("big", "integer")
    )
    assert values(source, dataset) == [("é日", "é", 1234567.0, "11.4", "0.1", 9_007_199_254_740_993)]
    assert values(source, dataset_of(("big", "integer"), table="sums")) == [(9_007_199_254_740_993,)]
    missing = refusal(source, dataset_of(("nope", "text")))
    assert (missing.code, "nope" in missing.message) == (FailureCode.SOURCE_REFUSED, True)


def test_decimals_that_another_databases_driver_gives_are_not_rounded(postgres_url: str) -> None:
    """By PostgreSQL's driver in the place of another's."""
    run(
        postgres_url,
        "CREATE TABLE t AS SELECT 1 AS id, 'acme'::text AS org, 1234567890123456789::numeric AS v, "
        "9007199254740993 AS w, 0.1::float8 AS f UNION ALL SELECT 2, 'acme', NULL, NULL, NULL",
    )
    dataset = dataset_of(("v", "integer"), ("w", "integer"), ("f", "float"))
    query = build_query(Selection(dataset, "acme", dataset.columns, AllOf(())), "postgresql")
    with pandas_snapshot(Source(postgres_url.replace("postgresql://", "postgresql+psycopg://")), query) as snapshot:
        rows = [tuple(row.values())[1:4] for batch in snapshot.batches for row in batch.to_pylist()]
    assert rows == [(1234567890123456789, 9007199254740993, 0.1), (None, None, None)]


def test_fat_rows_of_mariadb_are_read_few_at_a_time(mariadb_url: str) -> None:
    run_mariadb(
        mariadb_url, "CREATE VIEW t AS SELECT seq AS id, 'acme' AS org, repeat('x', 1000000) AS v FROM seq_1_to_101"
    )
    assert_bounded(Source(mariadb_url))
