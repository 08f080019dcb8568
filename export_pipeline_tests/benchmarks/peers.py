"""What people would use instead, as documented: ``python -m export_pipeline_tests.benchmarks.peers NAME``.

Each reads the same SELECT from PostgreSQL or SQLite and writes one file. Whatever can stream is made to.
"""

from __future__ import annotations

import csv
import re
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from export_pipeline_tests.benchmarks.jobs import Job, do, read_job

CHUNK_ROWS = 50_000
_CELL_CHARACTERS = 32_767
_LINE_END = "\r\n"
"""With only a line feed Python's csv leaves a carriage return in a cell without quotes (before 3.13)."""
_NOT_IN_XML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def pandas_chunks(job: Job) -> Callable[[], None]:
    """pandas, ``read_sql`` in chunks and ``to_csv``."""
    import pandas as pd

    def work() -> None:
        with _streaming(job) as connection, job.output.open("w", newline="") as file:
            for number, frame in enumerate(pd.read_sql(sa.text(job.statement), connection, chunksize=CHUNK_ROWS)):
                frame.to_csv(file, header=number == 0, index=False, lineterminator=_LINE_END)

    return work


def polars_frame(job: Job) -> Callable[[], None]:
    """polars, ``read_database_uri`` by ADBC and ``write_csv`` or ``write_ndjson``: the whole frame in memory."""
    import adbc_driver_manager.dbapi  # noqa: F401
    import polars as pl

    statement = job.statement if job.source_url.startswith("sqlite") else _as_text(job, instants=False)

    def work() -> None:
        frame = pl.read_database_uri(statement, _uri(job), engine="adbc")
        if job.format == "csv":
            frame.write_csv(job.output)
        else:
            frame.write_ndjson(job.output, compression="gzip", compression_level=1)

    return work


def duckdb_copy(job: Job) -> Callable[[], None]:
    """Duckdb with its postgres extension: a parallel scan, in no order, copied to a file."""
    import duckdb

    spec = find_spec("duckdb_extension_postgres_scanner")
    if spec is None or spec.origin is None:
        raise RuntimeError("duckdb-extension-postgres-scanner is not installed: pip install '.[test]'")
    extension = next(Path(spec.origin).parent.rglob("*.duckdb_extension"))
    options = "FORMAT csv, HEADER" if job.format == "csv" else "FORMAT json, COMPRESSION gzip"

    def work() -> None:
        with closing(duckdb.connect()) as connection:
            connection.load_extension(str(extension))
            connection.execute(f"ATTACH '{_uri(job)}' AS source (TYPE postgres, READ_ONLY)")
            connection.execute("USE source.public")
            connection.execute(f"COPY ({job.unordered}) TO '{job.output}' ({options})")

    return work


def jetxl_table(job: Job) -> Callable[[], None]:
    """jetxl, Rust on Arrow: the whole table in memory."""
    import adbc_driver_postgresql.dbapi as adbc
    import jetxl

    def work() -> None:
        with closing(adbc.connect(_uri(job))) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(_as_text(job))
            jetxl.write_sheet_arrow(cursor.fetch_arrow_table(), str(job.output))

    return work


def rustpy_rows(job: Job) -> Callable[[], None]:
    """rustpy-xlsxwriter, Rust: a generator of rows."""
    import adbc_driver_postgresql.dbapi as adbc
    from rustpy_xlsxwriter import write_worksheet

    def work() -> None:
        with closing(adbc.connect(_uri(job))) as connection, closing(connection.cursor()) as cursor:
            cursor.execute(_within_excel(_as_text(job)))
            batches = cursor.fetch_record_batch()
            rows = (row for batch in batches for row in batch.to_pylist())
            write_worksheet(rows, str(job.output))

    return work


def openpyxl_write_only(job: Job) -> Callable[[], None]:
    """Openpyxl's write-only workbook, a row at a time."""
    from openpyxl import Workbook

    def work() -> None:
        book = Workbook(write_only=True)
        sheet = book.create_sheet("contacts")
        with _streaming(job) as connection:
            for row in _rows(connection, job):
                sheet.append(row)
        book.save(job.output)

    return work


def xlsxwriter_constant_memory(job: Job) -> Callable[[], None]:
    """Xlsxwriter in constant memory, a row at a time."""
    import xlsxwriter

    def work() -> None:
        options = {
            "constant_memory": True,
            "default_date_format": "yyyy-mm-dd hh:mm:ss",
            "strings_to_formulas": False,
            "strings_to_urls": False,
            "nan_inf_to_errors": True,
        }
        with xlsxwriter.Workbook(job.output, options) as book, _streaming(job) as connection:
            sheet = book.add_worksheet("contacts")
            for number, row in enumerate(_rows(connection, job)):
                sheet.write_row(number, 0, row)

    return work


def sqlite_csv_module(job: Job) -> Callable[[], None]:
    """Python's ``sqlite3`` and ``csv``."""

    def work() -> None:
        path = sa.make_url(job.source_url).database or ""
        with closing(sqlite3.connect(path)) as connection, job.output.open("w", newline="") as file:
            cursor = connection.execute(job.statement)
            writer = csv.writer(file, lineterminator=_LINE_END)
            writer.writerow([column[0] for column in cursor.description])
            writer.writerows(cursor)

    return work


PEERS: Mapping[str, Callable[[Job], Callable[[], None]]] = {
    "pandas": pandas_chunks,
    "polars": polars_frame,
    "duckdb": duckdb_copy,
    "jetxl": jetxl_table,
    "rustpy-xlsxwriter": rustpy_rows,
    "openpyxl": openpyxl_write_only,
    "xlsxwriter": xlsxwriter_constant_memory,
    "sqlite3 + csv": sqlite_csv_module,
}


@contextmanager
def _streaming(job: Job) -> Iterator[sa.Connection]:
    engine = sa.create_engine(job.source_url)
    try:
        with engine.connect().execution_options(stream_results=True, yield_per=2_000) as connection:
            yield connection
    finally:
        engine.dispose()


def _rows(connection: sa.Connection, job: Job) -> Iterable[list[Any]]:
    result = connection.execute(sa.text(job.statement))
    yield list(result.keys())
    for row in result:
        yield [_cell(value) for value in row]


def _cell(value: Any) -> Any:
    """What a workbook's writer takes."""
    if isinstance(value, str):
        return _NOT_IN_XML.sub("", value)
    if isinstance(value, datetime):
        return value.replace(tzinfo=None)
    return value if value is None or isinstance(value, int | float) else str(value)


def _as_text(job: Job, *, instants: bool = True) -> str:
    """The statement for writers that know no UUID, no JSON, and (``instants``) no instant with a zone."""
    columns, rest = job.statement.removeprefix("SELECT ").split(" FROM ", 1)
    kinds = {"contact_id": "text", "custom_fields": "text"}
    if instants:
        kinds |= {"created_at": "timestamp", "updated_at": "timestamp"}
    read = [f"{name}::{kinds[name]} AS {name}" if name in kinds else name for name in columns.split(", ")]
    return f"SELECT {', '.join(read)} FROM {rest}"


def _within_excel(statement: str) -> str:
    """The statement with no instant before 1900 and no long text: rustpy-xlsxwriter ends at the first that it sees."""
    for name in ("created_at", "updated_at"):
        statement = statement.replace(f"{name}::timestamp", f"greatest({name}, '1900-03-01')::timestamp")
    statement = statement.replace("custom_fields::text", f"left(custom_fields::text, {_CELL_CHARACTERS})")
    return statement.replace(" location,", f" left(location, {_CELL_CHARACTERS}) AS location,")


def _uri(job: Job) -> str:
    url = sa.make_url(job.source_url)
    return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=False)


def main() -> None:
    """Read a job, do it as the peer that is named, tell."""
    do(PEERS[sys.argv[1]](read_job()))


if __name__ == "__main__":
    main()
