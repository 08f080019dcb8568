"""What an export is handed to: the store, its links, staging, mail, alerts. Each is used once, and cleaned up."""

from __future__ import annotations

import hashlib
import io
import re
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from urllib.parse import urlsplit

import requests

from export_pipeline.check.findings import Finding, ok, warning, wrong
from export_pipeline.failures import ExportFailure
from export_pipeline.messaging.message import MailNotAccepted, MailOutcomeUnknown
from export_pipeline.messaging.providers import default_sender, open_mail_provider
from export_pipeline.settings import NO_MAIL, Settings, SettingsError, local_path
from export_pipeline.storage.staging import Staging
from export_pipeline.storage.store import Link, ObjectDescription, Store, open_store

_PROBE = b"export-pipeline check\n"
_OTHER_BYTES = "Other bytes came back than were written."
_HTTP_SECONDS = 10.0
_SLACK = timedelta(minutes=1)
_AGES_AGO = timedelta(days=36_500)


def check_store(settings: Settings) -> Iterator[Finding]:
    """Write an object, open it by the link that a recipient would get, delete it."""
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
        yield from _read_back(store, key)
        yield from _links(store, description, settings)
    except ExportFailure as failure:
        yield wrong("read", failure.message)
    finally:
        deleted = list(_delete(store, key))
    yield from deleted


def _read_back(store: Store, key: str) -> Iterator[Finding]:
    with store.open(key) as stream:
        same = stream.read() == _PROBE
    yield (ok("read", "it reads back as it was written") if same else wrong("read", _OTHER_BYTES))
    # The janitor lists what is old, and what was never ended.
    list(store.keys(key))
    store.abort_uploads(_AGES_AGO)
    yield ok("list", "objects and unfinished uploads can be listed")


def _links(store: Store, description: ObjectDescription, settings: Settings) -> Iterator[Finding]:
    promised = timedelta(hours=settings.link_lifetime_hours)
    link = store.link(description, promised)
    parts = urlsplit(link.url)
    if parts.scheme == "file":
        if not settings.public_url:
            yield warning(
                "link",
                "Links lead to files of this machine. Set EXPORT_PUBLIC_URL and run the gateway, or deliver to S3.",
            )
        return
    origin = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    yield _opened(link, origin, here=urlsplit(settings.s3_endpoint_url).netloc in ("", parts.netloc))
    if _is_internal(parts.hostname or ""):
        yield warning(
            "link host",
            f"Links lead to {origin}, which only this network knows: recipients elsewhere cannot open them. Set "
            "EXPORT_S3_PUBLIC_ENDPOINT_URL to a host that they reach.",
        )
    yield from _lifetime(link, promised, settings)


def _opened(link: Link, origin: str, *, here: bool) -> Finding:
    """As a browser does, which has no credentials; ``here``: the host is the one that the object was written to."""
    try:
        answer = requests.get(link.url, timeout=_HTTP_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        text = f"A signed link to {origin} could not be opened from this machine ({type(error).__name__})."
        return wrong("link", text) if here else warning("link", f"{text} Try one from where recipients are.")
    if answer.status_code == requests.codes.ok and answer.content == _PROBE:
        return ok("link", f"a signed link to {origin} opens")
    return wrong(
        "link",
        f"A signed link to {origin} is answered with HTTP {answer.status_code}. Check AWS_REGION, the clock, and what "
        "stands before the store.",
    )


def _is_internal(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".localhost", ".svc"))


def _lifetime(link: Link, promised: timedelta, settings: Settings) -> Iterator[Finding]:
    # Sealed links of the gateway make a new one at each click.
    if link.expires_at is None or settings.public_url:
        return
    lives = link.expires_at - datetime.now(UTC)
    if lives < promised - _SLACK:
        yield warning(
            "link lifetime",
            f"Links live {lives.total_seconds() / 3600:.1f} hours, not the {promised.total_seconds() / 3600:g} of "
            "EXPORT_LINK_LIFETIME_HOURS: the credentials that sign them die sooner. Sign with keys that do not "
            "expire, or set EXPORT_PUBLIC_URL and run the gateway.",
        )


def _delete(store: Store, key: str) -> Iterator[Finding]:
    try:
        store.delete(key)
        gone = store.size(key) is None
    except ExportFailure as failure:
        yield wrong("delete", failure.message)
    else:
        yield ok("delete", "it is gone again") if gone else wrong("delete", "It is still there after it was deleted.")


def check_staging(settings: Settings) -> Iterator[Finding]:
    """Write, read, list and delete an object between two steps."""
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
        # Its own words are those of a step that misses what an earlier one wrote.
        reason = re.search(r"\([^)]+\)", failure.message)
        text = (
            f"It failed {reason[0] if reason else f'({failure.code})'}. Check that this user may write, list and delete"
        )
        yield wrong("write, read, delete", f"{text} at EXPORT_STAGING_URL, its free space, or the AWS credentials.")
        return
    yield ok("write, read, delete", "works") if same else wrong("read", _OTHER_BYTES)


def check_mail(settings: Settings) -> Iterator[Finding]:
    """Log in where mails are handed over; none is sent."""
    try:
        default_sender(settings)
    except SettingsError as error:
        yield wrong("sender", str(error))
    if not settings.sends_mail:
        yield ok("provider", f"EXPORT_MAIL_URL is {NO_MAIL}: nobody is mailed")
        return
    try:
        open_mail_provider(settings).check()
    except SettingsError as error:
        yield wrong("provider", str(error))
    except (MailNotAccepted, MailOutcomeUnknown) as error:
        yield wrong("provider", f"No mail can be handed over ({error.reason}). {_mail_advice(error.reason)}")
    else:
        where = "the outbox directory" if local_path(settings.mail_url) else urlsplit(settings.mail_url).scheme
        yield ok("provider", f"{where} takes mails")


def _mail_advice(reason: str) -> str:
    if reason.startswith("sendgrid"):
        return "Check SENDGRID_API_KEY, its right mail.send, and SENDGRID_HOST."
    if reason.startswith("outbox"):
        return "Check the directory of EXPORT_MAIL_URL, and that this user may write there."
    if any(word in reason for word in ("NotSupported", "STARTTLS", "AUTH")):
        return "The server takes no login like this: see smtps:// and starttls in docs/settings.md, EXPORT_MAIL_URL."
    if "SSL" in reason or "Cert" in reason:
        return "TLS failed: check the host's name and certificate, and smtp:// against smtps:// in EXPORT_MAIL_URL."
    if any(code in reason for code in ("530", "534", "535")):
        return "The server refuses the login: check user and password in EXPORT_MAIL_URL."
    return "Check that the server runs, and host and port in EXPORT_MAIL_URL."


def check_gateway(settings: Settings) -> Iterator[Finding]:
    """Where mails say that links are opened; a deploy may come before the gateway runs."""
    if not settings.public_url:
        return
    if not settings.signing_key.get_secret_value():
        yield warning(
            "signing key", "EXPORT_SIGNING_KEY is not set: mails of recurring exports carry no link to unsubscribe."
        )
    reason = ""
    try:
        answer = requests.get(f"{settings.public_url}/healthz", timeout=_HTTP_SECONDS, allow_redirects=False)
        reason = "" if answer.status_code == requests.codes.ok else f"HTTP {answer.status_code}"
    except requests.RequestException as error:
        reason = type(error).__name__
    if reason:
        yield warning("public URL", f"EXPORT_PUBLIC_URL does not answer as the gateway does ({reason} at /healthz).")
    else:
        yield ok("public URL", "the gateway answers")


def check_executor(settings: Settings) -> Iterator[Finding]:
    """Celery's broker, without which every step waits for ever. The other executors need nothing that is elsewhere."""
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
    except Exception as error:  # noqa: BLE001 - each broker's client raises its own; the text may hold the password
        yield wrong("broker", f"EXPORT_CELERY_BROKER_URL does not answer ({type(error).__name__}). Check that it runs.")
    else:
        yield ok("broker", "answers")


def check_alerts(settings: Settings) -> Iterator[Finding]:
    """Who is told of failed runs. Nothing is sent: an alert is for people."""
    if not settings.alerts:
        yield warning(
            "channels",
            "Nobody is told of failed exports. Set EXPORT_ALERT_WEBHOOK_URL or EXPORT_ALERT_EMAIL.",
        )
        return
    url = urlsplit(settings.alert_webhook_url.get_secret_value())
    if url.netloc and not url.path.strip("/"):
        yield wrong("webhook", "EXPORT_ALERT_WEBHOOK_URL names a host alone; copy the whole URL of the webhook.")
    elif url.scheme == "http":
        yield warning("webhook", "EXPORT_ALERT_WEBHOOK_URL is http: its secret and the alerts travel unencrypted.")
    elif url.netloc:
        yield ok("webhook", "is an https URL; nothing was sent")
    if settings.alert_email:
        yield ok("mail", "goes through the mail provider")
