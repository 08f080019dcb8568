"""MariaDB and MySQL: read-only snapshots, how to stop reading early, and what the servers' errors mean."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from export_pipeline.catalog.types import ColumnType
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.source.dialects.mariadb import as_bytes, as_double
from export_pipeline.source.query import Query
from export_pipeline.source.readers import SECONDS_IDLE, SECONDS_TO_WAIT_FOR_A_LOCK, SECONDS_TO_WAIT_FOR_US
from export_pipeline.storage.batches import ARROW_TYPES

_DRIVERS = frozenset({"pymysql", "mysqldb"})
_SECONDS_OF_SILENCE = 60
"""How much later than its time-out a statement may end on the server."""
_SQLSTATES = {
    1040: "53300",  # too many connections
    1044: "28000",  # access denied to the database
    1045: "28000",  # access denied
    1049: "3D000",  # no such database
    1053: "57P01",  # the server shuts down
    1142: "42501",  # the user has no right to the table
    1205: "55P03",  # a lock was not free in time
    1213: "40P01",  # deadlock
    1242: "54000",  # dialects.mariadb: a child list is too long
    1267: "42804",  # incompatible collations
    1317: "57P01",  # an administrator ended the query
    1690: "22003",  # a number is out of range
    1698: "28000",  # access denied without a password
    1927: "57P01",  # an administrator ended the connection
    1969: "57014",  # max_statement_time (MariaDB)
    3024: "57014",  # max_execution_time (MySQL)
}
"""The servers' error numbers (mariadb.com/kb/en/mariadb-error-code-reference) as PostgreSQL's SQLSTATEs of the same
meaning: their own is HY000, or 70100, for most of them."""
_NAMES = {
    1054: re.compile(r"(?i)unknown column '[^']*'"),
    1142: re.compile(r"(?i)for table \S+"),
    1143: re.compile(r"(?i)for column \S+ in table \S+"),
    1146: re.compile(r"(?i)table '[^']*'"),
    1356: re.compile(r"(?i)view '[^']*'"),
}
"""The part of an error's message that names a table, column or view."""
_NUMBERS = (ColumnType.FLOAT, ColumnType.DECIMAL, ColumnType.TEXT)
_FLOAT, _BIT = 4, 16
"""The protocol's numbers for types of columns (``MYSQL_TYPE_…``)."""


def reading_engine(url: sa.URL, statement_timeout_seconds: float) -> sa.Engine:
    """An engine that always reads UTF-8 and does not wait for a silent server.

    Another character set turns letters into question marks. These drivers set no TCP keepalive, so the statement
    time-out, if there is one, limits the wait.
    """
    if url.get_driver_name() in _DRIVERS:
        url = url.update_query_dict({"charset": "utf8mb4"})
        if statement_timeout_seconds and "read_timeout" not in url.query:
            longest = math.ceil(statement_timeout_seconds) + _SECONDS_OF_SILENCE
            url = url.update_query_dict({"read_timeout": str(longest)})
    engine = sa.create_engine(url, poolclass=sa.NullPool, hide_parameters=True)
    return engine.execution_options(isolation_level="REPEATABLE READ")


def begin(connection: sa.Connection, statement_timeout_seconds: float) -> None:
    """Begin one read-only snapshot, in UTC."""
    timeout = f"max_statement_time = {statement_timeout_seconds:.3f}"
    if not getattr(connection.dialect, "is_mariadb", False):
        timeout = f"max_execution_time = {round(statement_timeout_seconds * 1000)}"
    settings = (
        timeout,
        # A timestamp is read and compared in the session's zone; one without a zone is taken as UTC.
        "time_zone = '+00:00'",
        # A child list must not be cut off; the dialect checks the one limit that cannot be set here.
        "group_concat_max_len = 4294967295",
        # The server disconnects a client that fetches nothing for so long, and staging may be slow; default 1 minute.
        f"net_write_timeout = {SECONDS_TO_WAIT_FOR_US}",
        f"lock_wait_timeout = {SECONDS_TO_WAIT_FOR_A_LOCK}",
        # Between two statements only, for a frozen export process.
        f"wait_timeout = {SECONDS_IDLE}",
        # A row limit of the server would cut an export off.
        "sql_select_limit = DEFAULT",
        "sql_big_selects = 1",
    )
    connection.exec_driver_sql(f"SET SESSION {', '.join(settings)}")
    connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")


def own_values(connection: sa.Connection, query: Query) -> tuple[sa.Select[Any], frozenset[int]]:
    """The statement for rows without loss in the table's columns, and the places of 32-bit floats, read as doubles.

    The server writes such floats with six digits, and bytes as text with question marks.
    """
    own = {place: column.label(f"own_{place}") for place, column in query.own.items()}
    if not own:
        return query.rows, frozenset()
    described = connection.execute(query.rows.with_only_columns(*own.values()).limit(0)).cursor.description
    kinds = {place: column[1] for place, column in zip(own, described, strict=True)}
    read: list[sa.ColumnElement[Any]] = list(query.rows.selected_columns)
    narrow = set()
    for place, column in query.own.items():
        declared = query.columns[place]
        if kinds[place] == _BIT:
            raise ExportFailure(
                FailureCode.SOURCE_DATA_INVALID,
                f"Column {declared.source} is bit in the source database, which cannot be read as {declared.type}. "
                "Cast it in a view, such as to unsigned or to boolean.",
            )
        if kinds[place] == _FLOAT and declared.type in _NUMBERS:
            read[place] = as_double(column).label(declared.name)
            narrow.add(place)
        elif ARROW_TYPES[declared.type] == pa.string():
            read[place] = as_bytes(column).label(declared.name)
    return query.rows.with_only_columns(*read), frozenset(narrow)


def abandon(connection: sa.Connection) -> None:
    """End the statement that is still being read: the drivers would fetch all other rows before closing."""
    # From the driver, without a round trip: the connection is busy with the rows.
    thread_id = getattr(connection.connection.dbapi_connection, "thread_id", None)
    if not callable(thread_id):
        return
    with contextlib.suppress(sa.exc.SQLAlchemyError), connection.engine.connect() as other:
        other.exec_driver_sql(f"KILL QUERY {int(thread_id())}")


def forget(cursor: object) -> None:
    """Release a cursor: PyMySQL's would read on when it is collected, even from a lost connection."""
    result = getattr(cursor, "_result", None)
    if result is not None:
        result.unbuffered_active = False


def names_of(error: BaseException) -> str:
    """The table or column in the server's error; empty if there is none."""
    pattern = _NAMES.get(_number(error))
    found = pattern.search(" ".join(map(str, error.args[1:2]))) if pattern else None
    return found[0] if found else ""


def sqlstate_of(error: BaseException) -> str:
    """PostgreSQL's SQLSTATE for the server's error number; empty if this module does not know the number."""
    return _SQLSTATES.get(_number(error), "")


def _number(error: BaseException) -> int:
    """The server's error number; 0 if there is none, or no driver for these servers raised it."""
    is_of_driver = type(error).__module__.partition(".")[0] in ("pymysql", "MySQLdb")
    return error.args[0] if is_of_driver and error.args and isinstance(error.args[0], int) else 0
