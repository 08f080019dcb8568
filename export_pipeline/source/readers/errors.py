"""What a driver's error means: who must act, and on which table or column.

The text of an error may contain values of rows, so it is never shown. Names of tables and columns may be shown: the
catalog has them.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.source.readers.mariadb import names_of, sqlstate_of

STATEMENT_TIMEOUT = "57014"
TOO_LARGE = "54000"
_SQLITE_MAY_PASS = ("is locked", "unable to open database", "disk I/O error")
"""SQLite has no SQLSTATE; these are the messages of SQLITE_BUSY, SQLITE_LOCKED, SQLITE_CANTOPEN and SQLITE_IOERR."""
_SQLITE_NAMES = re.compile(r"no such (?:table|column|function): \S+")
_NOT_OF_THE_TYPE = ("22P02", "22003", "22007", "22008", "22021", "22P05")
"""PostgreSQL's SQLSTATEs for a literal that its column's type does not allow."""
_MAY_PASS = ("08", "25P03", "25P04", "40", "53", "55", "57", "58")
_LOGIN = ("28", "3D")
_LOGIN_REFUSED = re.compile(
    r"authentication failed|no pg_hba\.conf entry|no password supplied|not permitted to log in|no such user|auth failed"
    r"|(role|database|user) .* does not exist|permission denied for database"
)
"""libpq has no SQLSTATE for a failed connection, only the server's message."""
_ROW_SECURITY = "check_enable_rls"
"""The function of PostgreSQL that raises 42501 where policies would hide rows."""


@contextmanager
def translated(errors: tuple[type[Exception], ...], *, compares: bool = False) -> Iterator[None]:
    """Turn a driver's errors into ``ExportFailure`` (``failure_of``)."""
    try:
        yield
    except errors as error:
        raise failure_of(error, compares=compares) from None


def failure_of(error: Exception, *, compares: bool = False, column: str = "") -> ExportFailure:
    """What a driver's error means, by its SQLSTATE where there is one; ``column`` is what it is about, if known.

    ``compares``: no row was read yet: the database was converting the request's values to the types of their columns.
    """
    original = getattr(error, "orig", None) or error  # SQLAlchemy wraps it
    sqlstate = sqlstate_of(original) or str(getattr(original, "sqlstate", None) or "")
    if getattr(original, "sqlite_errorname", None) == "SQLITE_INTERRUPT":
        sqlstate = STATEMENT_TIMEOUT
    shown = f"SQLSTATE {sqlstate}" if sqlstate else type(original).__name__
    if sqlstate.startswith("22"):
        return _wrong_value(shown, column, of_request=compares and sqlstate in _NOT_OF_THE_TYPE)
    if sqlstate == STATEMENT_TIMEOUT:
        return timed_out()
    if _may_pass(original, sqlstate):
        return ExportFailure(
            FailureCode.SOURCE_UNAVAILABLE,
            f"The source database could not be read ({shown}). Check that it runs and EXPORT_SOURCE_URL.",
        )
    return ExportFailure(FailureCode.SOURCE_REFUSED, _refusal(original, sqlstate, shown, column))


def _refusal(error: BaseException, sqlstate: str, shown: str, column: str) -> str:
    if sqlstate == TOO_LARGE:
        return (
            "A row's child list is longer than the source database can send at once. Give the child list a limit in "
            "the catalog, or raise max_allowed_packet in the database."
        )
    if _is_of_login(error, sqlstate):
        return (
            f"The source database refused the login ({shown}). Check the user, the password and the database of "
            "EXPORT_SOURCE_URL."
        )
    names = _names(error, sqlstate)
    if getattr(getattr(error, "diag", None), "source_function", None) == _ROW_SECURITY:
        return (
            "Row-level security of the source database would hide rows from the user of EXPORT_SOURCE_URL, so the "
            f"export would be incomplete ({names}). Give that user BYPASSRLS, or set EXPORT_SOURCE_ROW_SECURITY=true "
            "if the policies hide what must not be exported."
        )
    named = ", ".join(filter(None, [f"{shown}: {names}" if names else shown, column and f"at {column}"]))
    return (
        f"The source database refused the query ({named}). Check the catalog's tables, columns and their types, and "
        "the user's rights."
    )


def _wrong_value(shown: str, column: str, *, of_request: bool) -> ExportFailure:
    if not of_request:
        return ExportFailure(
            FailureCode.SOURCE_DATA_INVALID,
            f"The source database could not compute a value of a row ({shown}). Correct the data, or the view.",
        )
    compared = f" with column {column}" if column else ""
    return ExportFailure(
        FailureCode.INVALID_REQUEST,
        f"The source database cannot compare a value of organization_id or filters{compared} ({shown}). "
        "Check that their types are those of the columns.",
    )


def timed_out() -> ExportFailure:
    """A statement exceeded its time limit."""
    return ExportFailure(
        FailureCode.SOURCE_REFUSED,
        "The source database stopped the query: it took longer than EXPORT_STATEMENT_TIMEOUT_SECONDS, or was "
        "canceled there. Raise the limit, or add an index on the tenant and key columns.",
    )


def _names(error: BaseException, sqlstate: str) -> str:
    """The table or column in the error; empty if there is none, or if a function in the database raised it."""
    message: Any = ""
    if sqlstate.startswith("42") and sqlstate != "42601":
        diagnosis, details = getattr(error, "diag", None), dict(getattr(error, "details", None) or ())
        if diagnosis is not None and not diagnosis.context:
            message = diagnosis.message_primary
        elif b"PG_DIAG_CONTEXT" not in details:
            message = details.get(b"PG_DIAG_MESSAGE_PRIMARY", b"").decode(errors="replace")
    found = _SQLITE_NAMES.search(str(error)) if not sqlstate else None
    return message or names_of(error) or (found[0] if found else "")


def _is_of_login(error: BaseException, sqlstate: str) -> bool:
    return sqlstate.startswith(_LOGIN) if sqlstate else bool(_LOGIN_REFUSED.search(str(error)))


def _may_pass(error: BaseException, sqlstate: str) -> bool:
    if sqlstate:
        return sqlstate.startswith(_MAY_PASS)
    if _is_of_login(error, sqlstate):
        return False
    if any(message in str(error) for message in _SQLITE_MAY_PASS):
        return True
    # A connection that breaks during COPY has no SQLSTATE; SQLite raises OperationalError for a missing table too.
    return type(error).__name__ in ("OperationalError", "InterfaceError") and not isinstance(error, sqlite3.Error)
