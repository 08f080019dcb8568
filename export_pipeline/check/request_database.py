"""The request database: reached, at the right revision, writable, in UTF-8, with a clock that agrees."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import sqlalchemy as sa

from export_pipeline.check.findings import Finding, ok, warning, wrong
from export_pipeline.database.engine import create_engine, reading, utc_now
from export_pipeline.database.migrate import current_revision, head_revision
from export_pipeline.database.tables import (
    metadata,
    organization_email_domains,
    organization_email_senders,
    organization_members,
    organizations,
)
from export_pipeline.database.types import current_instant
from export_pipeline.settings import Settings

_READ_ALONE = (organizations, organization_email_domains, organization_email_senders, organization_members)
"""Tables that an application may replace by views."""
_CLOCKS_APART, _CLOCKS_FAR_APART = timedelta(seconds=2), timedelta(seconds=30)
_READ_ONLY_TRANSACTION = "25006"
_UPGRADE = "Run: export-pipeline db upgrade"


def check_request_database(settings: Settings) -> Iterator[Finding]:
    """Everything about it that would stop a request."""
    url = sa.make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        yield wrong("connection", f"The file of EXPORT_DATABASE_URL does not exist yet. {_UPGRADE}.")
        return
    engine = create_engine(settings.database_url)
    try:
        revision = current_revision(engine)
    except sa.exc.SQLAlchemyError as error:
        yield wrong("connection", f"The request database could not be opened ({_name(error)}). {_advice(error)}")
        return
    yield ok("connection", f"{url.get_backend_name()} answers")
    found = _revision(revision)
    yield found
    yield from _encoding(engine)
    yield _clock(engine)
    if revision == head_revision():
        yield from _rights(engine)


def _revision(revision: str | None) -> Finding:
    head = head_revision()
    if revision == head:
        return ok("revision", f"{head}, the newest")
    if revision is None:
        return wrong("revision", f"The database has no tables of ours yet. {_UPGRADE}.")
    if revision > head:
        return wrong(
            "revision",
            f"The database is at revision {revision}, newer than {head}, which this version knows. "
            "Install the version that upgraded it.",
        )
    return wrong("revision", f"The database is at revision {revision}, this version needs {head}. {_UPGRADE}.")


def _encoding(engine: sa.Engine) -> Iterator[Finding]:
    if engine.dialect.name != "postgresql":
        return
    with reading(engine) as connection:
        for setting in ("server_encoding", "client_encoding"):
            encoding = connection.exec_driver_sql(f"SHOW {setting}").scalar_one()
            if encoding == "UTF8":
                yield ok(setting, "UTF8")
            else:
                yield wrong(
                    setting,
                    f"It is {encoding}: names and filters with other letters cannot be stored or read. Create the "
                    "database with ENCODING 'UTF8', and let role, URL and PGCLIENTENCODING choose no other.",
                )


def _clock(engine: sa.Engine) -> Finding:
    with reading(engine) as connection:
        before = utc_now()
        theirs = connection.execute(sa.select(current_instant())).scalar_one()
        after = utc_now()
    ahead = max(theirs - after, before - theirs, timedelta())
    seconds = f"{ahead.total_seconds():.0f} s"
    if ahead < _CLOCKS_APART:
        return ok("clock", "the database's and this machine's agree")
    text = f"The clocks of the database and of this machine are {seconds} apart. Synchronize both (NTP)."
    return wrong("clock", text) if ahead >= _CLOCKS_FAR_APART else warning("clock", text)


def _rights(engine: sa.Engine) -> Iterator[Finding]:
    """Each kind of statement that the pipeline makes, on no row."""
    try:
        with engine.connect() as connection, connection.begin() as transaction:
            problems = list(_refused(connection))
            transaction.rollback()
    except sa.exc.SQLAlchemyError as error:
        problems = [
            wrong("rights", f"Nothing can be written ({_name(error)}). Check the user's rights, or the file's.")
        ]
    yield from problems or [ok("rights", "all tables can be read, and ours be written")]


def _refused(connection: sa.Connection) -> Iterator[Finding]:
    for table in metadata.tables.values():
        column = next(column for column in table.columns if not column.identity and column.name != "id")
        none = sa.select(column).where(sa.false())
        statements: dict[str, sa.Executable] = {"SELECT": none}
        if table not in _READ_ALONE:
            statements |= {
                "INSERT": sa.insert(table).from_select([column], none, include_defaults=False),
                "UPDATE": sa.update(table).where(sa.false()).values({column: column}),
                "DELETE": sa.delete(table).where(sa.false()),
            }
        for kind, statement in statements.items():
            try:
                with connection.begin_nested():
                    connection.execute(statement)
            except sa.exc.SQLAlchemyError as error:
                if _name(error) == f"SQLSTATE {_READ_ONLY_TRANSACTION}":
                    yield wrong("rights", "The database is read-only. Let EXPORT_DATABASE_URL name the primary.")
                    return
                yield wrong(
                    f"rights on {table.name}", f"{kind} is refused ({_name(error)}). Grant it to the user of the URL."
                )


def _name(error: Exception) -> str:
    original = getattr(error, "orig", None) or error
    state = getattr(original, "sqlstate", None)
    return f"SQLSTATE {state}" if state else type(original).__name__


def _advice(error: Exception) -> str:
    # The text itself is not repeated: it names users and hosts.
    if "authentication failed" in str(error):
        return "The server refuses the login: check user and password in EXPORT_DATABASE_URL."
    return "Check that it runs, and host, user and database name in EXPORT_DATABASE_URL."
