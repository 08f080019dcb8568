"""Check all services but the source: request database, store, staging, mail, gateway, broker, alerts."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import requests
import sqlalchemy as sa

from export_pipeline.check import Finding, ok, warning, wrong
from export_pipeline.database.engine import create_engine, database_now, reading, utc_now
from export_pipeline.database.migrate import current_revision, head_revision
from export_pipeline.database.tables import metadata
from export_pipeline.failures import ExportFailure
from export_pipeline.messaging.message import MailNotAccepted, MailOutcomeUnknown
from export_pipeline.messaging.providers import default_sender, open_mail_provider
from export_pipeline.settings import NO_MAIL, Settings, SettingsError, local_path
from export_pipeline.storage import open_store
from export_pipeline.storage.staging import Staging
from export_pipeline.storage.store import Link, ObjectDescription, Store

_PROBE = b"export-pipeline check\n"
_OTHER_BYTES = "Other bytes came back than were written."
_HTTP_SECONDS = 10.0
_SLACK = timedelta(minutes=1)
_CENTURY = timedelta(days=36_500)
_CLOCK_WARNING, _CLOCK_WRONG = timedelta(seconds=2), timedelta(seconds=30)
_READ_ONLY_TRANSACTION = "25006"
_UPGRADE = "Run: export-pipeline db upgrade"


def check_request_database(settings: Settings) -> Iterator[Finding]:
    """Everything about the request database that would stop a request."""
    url = sa.make_url(settings.database_url)
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").exists():
        yield wrong("connection", f"The file of EXPORT_DATABASE_URL does not exist yet. {_UPGRADE}.")
        return
    engine = create_engine(settings.database_url)
    try:
        revision = current_revision(engine)
    except sa.exc.SQLAlchemyError as error:
        # Do not repeat the error's text: it names users and hosts.
        advice = "Check that it runs, and host, user and database name in EXPORT_DATABASE_URL."
        if "authentication failed" in str(error):
            advice = "The server refuses the login: check user and password in EXPORT_DATABASE_URL."
        yield wrong("connection", f"The request database could not be opened ({_name(error)}). {advice}")
        return
    yield ok("connection", f"{url.get_backend_name()} answers")
    yield _revision(revision)
    yield from _encoding(engine)
    yield _clock(engine)
    if revision == head_revision():
        yield from _rights(engine)


def _revision(revision: str | None) -> Finding:
    head = head_revision()
    if revision == head:
        return ok("revision", f"{head}, the newest")
    if revision is None:
        return wrong("revision", f"The database has no tables of export-pipeline yet. {_UPGRADE}.")
    if revision > head:
        return wrong(
            "revision",
            f"The database is at revision {revision}, newer than {head}, the newest of this version. "
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
                    "database with ENCODING 'UTF8', and set no other in the role, the URL or PGCLIENTENCODING.",
                )


def _clock(engine: sa.Engine) -> Finding:
    with reading(engine) as connection:
        before = utc_now()
        database_time = database_now(connection)
        after = utc_now()
    difference = max(database_time - after, before - database_time, timedelta())
    if difference < _CLOCK_WARNING:
        return ok("clock", "the database's and this machine's agree")
    seconds = f"{difference.total_seconds():.0f} s"
    text = f"The clocks of the database and of this machine are {seconds} apart. Synchronize both (NTP)."
    return wrong("clock", text) if difference >= _CLOCK_WRONG else warning("clock", text)


def _rights(engine: sa.Engine) -> Iterator[Finding]:
    """Each kind of statement that the pipeline runs, on no row."""
    try:
        with engine.connect() as connection, connection.begin() as transaction:
            problems = list(_refused(connection))
            transaction.rollback()
    except sa.exc.SQLAlchemyError as error:
        problems = [wrong("rights", f"Writing failed ({_name(error)}). Check the rights of the user, or of the file.")]
    yield from problems or [ok("rights", "every table has the rights that it needs")]


def _refused(connection: sa.Connection) -> Iterator[Finding]:
    for table in metadata.tables.values():
        column = next(column for column in table.columns if not column.identity and column.name != "id")
        none = sa.select(column).where(sa.false())
        statements: dict[str, sa.Executable] = {"SELECT": none}
        if not table.name.startswith("organization"):  # an application may replace these tables by views
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
                text = f"{kind} is refused ({_name(error)}). Grant it to the user of the URL."
                yield wrong(f"rights on {table.name}", text)


def _name(error: Exception) -> str:
    original = getattr(error, "orig", None) or error
    state = getattr(original, "sqlstate", None)
    return f"SQLSTATE {state}" if state else type(original).__name__


def check_store(settings: Settings) -> Iterator[Finding]:
    """Write an object, open it by a link as a recipient does, delete it."""
    key = f"check/{secrets.token_hex(16)}.txt"
    description = ObjectDescription(key, "check.txt", "text/plain")
    try:
        store = open_store(settings)
        digest = hashlib.sha256(_PROBE).hexdigest()
        store.put(io.BytesIO(_PROBE), description, size=len(_PROBE), sha256=digest, progress=lambda _done: None)
    except ExportFailure as failure:
        yield wrong("write", failure.message)
        return
    yield ok("write", "an object was written")
    try:
        with store.open(key) as stream:
            same = stream.read() == _PROBE
        yield ok("read", "the object reads back as it was written") if same else wrong("read", _OTHER_BYTES)
        # The janitor lists old objects and unfinished uploads.
        list(store.keys(key))
        store.abort_uploads(_CENTURY)
        yield ok("list", "objects and unfinished uploads can be listed")
        yield from _links(store, description, settings)
    except ExportFailure as failure:
        yield wrong("read", failure.message)
    finally:
        deleted = list(_delete(store, key))
    yield from deleted


def _links(store: Store, description: ObjectDescription, settings: Settings) -> Iterator[Finding]:
    promised = timedelta(hours=settings.link_lifetime_hours)
    link = store.link(description, promised)
    parts = urlsplit(link.url)
    if parts.scheme == "file":
        if not settings.public_url:
            yield warning(
                "link",
                "Links point to files on this machine. Set EXPORT_PUBLIC_URL and run the gateway, or deliver to S3.",
            )
        return
    origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    yield _opened(link, origin, here=urlsplit(settings.s3_endpoint_url).netloc in ("", parts.netloc))
    if _is_internal(parts.hostname or ""):
        yield warning(
            "link host",
            f"Links point to {origin}, which only this network can reach: recipients elsewhere cannot open them. Set "
            "EXPORT_S3_PUBLIC_ENDPOINT_URL to a host that recipients can reach.",
        )
    # The gateway's download links make a new one at each click.
    valid = promised if link.expires_at is None or settings.public_url else link.expires_at - datetime.now(UTC)
    if valid < promised - _SLACK:
        yield warning(
            "link lifetime",
            f"Links are valid for {valid.total_seconds() / 3600:.1f} hours, not for EXPORT_LINK_LIFETIME_HOURS "
            f"({settings.link_lifetime_hours:g}): the credentials that sign them expire sooner. Sign with keys that do "
            "not expire, or set EXPORT_PUBLIC_URL and run the gateway.",
        )


def _opened(link: Link, origin: str, *, here: bool) -> Finding:
    """Open a link as a browser does, without credentials; ``here``: its host is the one that was written to."""
    try:
        answer = requests.get(link.url, timeout=_HTTP_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        text = f"A signed link to {origin} could not be opened from this machine ({type(error).__name__})."
        return wrong("link", text) if here else warning("link", f"{text} Try one from a recipient's network.")
    if answer.status_code == requests.codes.ok and answer.content == _PROBE:
        return ok("link", f"a signed link to {origin} opens")
    return wrong(
        "link",
        f"A signed link to {origin} returns HTTP {answer.status_code}. Check AWS_REGION, the clock, and any "
        "proxy before the store.",
    )


def _is_internal(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost", ".svc"))


def _delete(store: Store, key: str) -> Iterator[Finding]:
    try:
        store.delete(key)
        gone = store.size(key) is None
    except ExportFailure as failure:
        yield wrong("delete", failure.message)
    else:
        yield (ok("delete", "the object was deleted") if gone else wrong("delete", "The object was not deleted."))


def check_staging(settings: Settings) -> Iterator[Finding]:
    """Write, read, list and delete an object as the steps of a run do."""
    prefix = f"check-{secrets.token_hex(16)}"
    try:
        staging = Staging(settings.staging_url, s3_endpoint_url=settings.s3_endpoint_url)
        with staging.create(f"{prefix}/probe") as sink:
            sink.write(_PROBE)
        try:
            with staging.open(f"{prefix}/probe") as stream:
                same = stream.read() == _PROBE
            staging.trees()
        finally:
            staging.delete_tree(prefix)
    except ExportFailure as failure:
        # Take only the reason: the rest of the message is about a step that misses the output of an earlier one.
        reason = re.search(r"\([^)]+\)", failure.message)
        yield wrong(
            "write, read, delete",
            f"It failed {reason[0] if reason else f'({failure.code})'}. Check that this user may write, list and "
            "delete at EXPORT_STAGING_URL, its free space, or the AWS credentials.",
        )
        return
    yield ok("write, read, delete", "works") if same else wrong("read", _OTHER_BYTES)


def check_mail(settings: Settings) -> Iterator[Finding]:
    """Log in to the mail provider; no mail is sent."""
    try:
        default_sender(settings)
    except SettingsError as error:
        yield wrong("sender", str(error))
    if not settings.sends_mail:
        yield ok("provider", f"EXPORT_MAIL_URL is {NO_MAIL}: no mails are sent")
        return
    try:
        open_mail_provider(settings).check()
    except SettingsError as error:
        yield wrong("provider", str(error))
    except (MailNotAccepted, MailOutcomeUnknown) as error:
        yield wrong("provider", f"The provider cannot send mails ({error.reason}). {_mail_advice(error.reason)}")
    else:
        where = "the outbox directory" if local_path(settings.mail_url) else urlsplit(settings.mail_url).scheme
        yield ok("provider", f"{where} accepts mails")


def _mail_advice(reason: str) -> str:
    if reason.startswith("sendgrid"):
        return "Check SENDGRID_API_KEY, its permission mail.send, and SENDGRID_HOST."
    if reason.startswith("outbox"):
        return "Check the directory of EXPORT_MAIL_URL, and that this user may write there."
    if any(word in reason for word in ("NotSupported", "STARTTLS", "AUTH")):
        return "The server does not accept this login: see smtps:// and starttls in docs/settings.md, EXPORT_MAIL_URL."
    if "SSL" in reason or "Cert" in reason:
        return "TLS failed: check the host's name and certificate, and smtp:// against smtps:// in EXPORT_MAIL_URL."
    if any(code in reason for code in ("530", "534", "535")):
        return "The server refuses the login: check user and password in EXPORT_MAIL_URL."
    return "Check that the server runs, and host and port in EXPORT_MAIL_URL."


def check_gateway(settings: Settings) -> Iterator[Finding]:
    """The public URL of the links in mails. Only warnings: a check may run before the gateway does."""
    if not settings.public_url:
        return
    if not settings.signing_key.get_secret_value():
        yield warning(
            "signing key", "EXPORT_SIGNING_KEY is not set: mails of recurring exports have no link to unsubscribe."
        )
    try:
        answer = requests.get(f"{settings.public_url}/healthz", timeout=_HTTP_SECONDS, allow_redirects=False)
        reason = "" if answer.status_code == requests.codes.ok else f"HTTP {answer.status_code}"
    except requests.RequestException as error:
        reason = type(error).__name__
    if reason:
        yield warning("public URL", f"The gateway does not answer at EXPORT_PUBLIC_URL ({reason} at /healthz).")
    else:
        yield ok("public URL", "the gateway answers")


def check_executor(settings: Settings) -> Iterator[Finding]:
    """Celery's broker: without it every step waits forever. The other executors need no server."""
    if settings.executor != "celery":
        return
    try:
        from celery import Celery
    except ModuleNotFoundError:
        yield wrong("celery", "Celery is not installed; run in your clone: pip install '.[celery]'.")
        return
    try:
        app = Celery(broker=settings.celery_broker_url.get_secret_value(), set_as_current=False)
        with app.connection_for_write(connect_timeout=_HTTP_SECONDS) as broker:
            broker.ensure_connection(max_retries=1, timeout=_HTTP_SECONDS)
    except Exception as error:  # noqa: BLE001 - each broker's client raises its own errors; the text may hold the password
        yield wrong("broker", f"EXPORT_CELERY_BROKER_URL does not answer ({type(error).__name__}). Check that it runs.")
    else:
        yield ok("broker", "answers")


def check_alerts(settings: Settings) -> Iterator[Finding]:
    """The channels of alerts. Nothing is sent: an alert is for people."""
    if not settings.alerts:
        yield warning(
            "channels", "No alerts of failed exports are sent. Set EXPORT_ALERT_WEBHOOK_URL or EXPORT_ALERT_EMAIL."
        )
        return
    url = urlsplit(settings.alert_webhook_url.get_secret_value())
    if url.netloc and not url.path.strip("/"):
        yield wrong("webhook", "EXPORT_ALERT_WEBHOOK_URL names only a host; copy the whole URL of the webhook.")
    elif url.scheme == "http":
        yield warning("webhook", "EXPORT_ALERT_WEBHOOK_URL is http: its secret and the alerts travel unencrypted.")
    elif url.netloc:
        yield ok("webhook", "is an https URL; nothing was sent")
    if settings.alert_email:
        yield ok("mail", "uses the mail provider")
