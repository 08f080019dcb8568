"""What one setting may be: the checks that stop the start, and the words that they say it with.

What belongs here: a type for every kind of value. What does not: the settings, and what must hold between them
(``settings``).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, SecretStr
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from export_pipeline.failures import Fault

NO_MAIL = "none:"
"""The mail provider of an installation that sends no mail."""
SHORTEST_SIGNING_KEY = 32
SHORTEST_RUN_RETENTION_DAYS = 3


def _request_database(value: str) -> str:
    url = _database(value)
    if url.get_backend_name() not in ("postgresql", "sqlite"):
        raise ValueError("requests are kept on PostgreSQL or SQLite; expected postgresql://… or sqlite:///path")
    return url.render_as_string(hide_password=False)


def _source_database(value: str) -> str:
    return _database(value).render_as_string(hide_password=False) if value else ""


def _database(value: str) -> URL:
    try:
        url = make_url(value)
        if url.drivername in ("postgresql", "postgres"):
            # SQLAlchemy 2.1 takes psycopg for it and 2.0 psycopg2: say which, so that both agree.
            url = url.set(drivername="postgresql+psycopg")
        url.get_dialect()
    except (ArgumentError, ValueError):
        # Not SQLAlchemy's own words: it takes a part of a password with a colon or an at sign in it for the port.
        raise ValueError(
            "is not a database URL; expected postgresql://… or sqlite:///path, with user and password percent-encoded"
        ) from None
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("needs a file that several processes can open; expected sqlite:///path")
    return url


def _place(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme == "s3" and parts.netloc:
        return value.rstrip("/")
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/") and parts.path.strip("/"):
        return value.rstrip("/")
    raise ValueError("expected s3://bucket/prefix or file:///absolute/directory")


def _mail(value: str) -> str:
    parts = urlsplit(value)
    if value in ("sendgrid:", "sendgrid://"):
        return "sendgrid:"
    if value in (NO_MAIL, "none://"):
        return NO_MAIL
    if parts.scheme in ("smtp", "smtps") and parts.hostname:
        return value
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return value.rstrip("/")
    raise ValueError("expected sendgrid:, smtp://host:port, file:///absolute/directory or none:")


def _http(value: str) -> str:
    if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).netloc):
        raise ValueError("expected http://host:port or https://host")
    if not re.fullmatch(r"[!-~]*", value):
        raise ValueError("expected a URL in ASCII without spaces; it stands in headers of mails and requests")
    return value.rstrip("/")


def _secret_http(value: SecretStr) -> SecretStr:
    _http(value.get_secret_value())
    return value


def _signing_key(value: SecretStr) -> SecretStr:
    if 0 < len(value.get_secret_value()) < SHORTEST_SIGNING_KEY:
        raise ValueError(f"needs at least {SHORTEST_SIGNING_KEY} characters, such as openssl rand -hex 32 makes")
    return value


def _address(value: str) -> str:
    try:
        return validate_email(value, check_deliverability=False).normalized if value else ""
    except EmailNotValidError:
        raise ValueError("expected name@domain") from None


def _fault_names(value: str) -> str:
    named = [name.strip() for name in value.split(",")]
    if not set(named) <= set(Fault):
        raise ValueError(f"expected some of {', '.join(Fault)}, with commas")
    return ",".join(named)


def _directory(value: str) -> str:
    if value and not Path(value).is_dir():
        raise ValueError("is not a directory; expected one that holds *.yaml dataset declarations")
    return value


def _run_retention(value: float) -> float:
    if 0 < value < SHORTEST_RUN_RETENTION_DAYS:
        raise ValueError(f"expected 0 or at least {SHORTEST_RUN_RETENTION_DAYS} days: mails are tried for two")
    return value


RequestDatabaseUrl = Annotated[str, AfterValidator(_request_database)]
SourceDatabaseUrl = Annotated[str, AfterValidator(_source_database)]
PlaceUrl = Annotated[str, AfterValidator(_place)]
MailUrl = Annotated[str, AfterValidator(_mail)]
HttpUrl = Annotated[str, AfterValidator(_http)]
SecretHttpUrl = Annotated[SecretStr, AfterValidator(_secret_http)]
SigningKey = Annotated[SecretStr, AfterValidator(_signing_key)]
Address = Annotated[str, AfterValidator(_address)]
FaultNames = Annotated[str, AfterValidator(_fault_names)]
CatalogDirectory = Annotated[str, AfterValidator(_directory)]
RunRetention = Annotated[float, AfterValidator(_run_retention)]
