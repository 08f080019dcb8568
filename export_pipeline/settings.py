"""Settings of an installation, read only from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

from email_validator import EmailNotValidError, validate_email
from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from export_pipeline.failures import Fault

HOME = Path.home() / ".export-pipeline"
"""The directory of the embedded default: readable only by its user, the same for every process."""
NO_MAIL = "none:"
"""The mail provider of an installation that sends no mail."""
LARGE_ROWS = 1_000_000
Executor = Literal["in_process", "multiprocess", "celery", "k8s"]
BEYOND_ONE_MACHINE: tuple[Executor, ...] = ("celery", "k8s")
"""Executors whose steps share no disk."""
_HEARTBEATS_IN_TIMEOUT = 10
_RESULT_BACKENDS = ("redis", "rediss", "redis+socket", "sentinel")
"""Schemes of Celery's brokers that are also result backends."""
_MIN_KEY_LENGTH = 32
_PLACEHOLDER_KEY = "AT_LEAST_THIRTY_TWO_CHARACTERS_OF_IT"
"""An example file once held it in place of a key: everybody can sign with it."""
_MIN_RUN_RETENTION_DAYS = 3


def _database(value: str) -> URL:
    try:
        url = make_url(value)
        if url.drivername in ("postgresql", "postgres"):
            # The default driver is psycopg in SQLAlchemy 2.1 and psycopg2 in 2.0: name it, so that both use psycopg.
            url = url.set(drivername="postgresql+psycopg")
        url.get_dialect()
    except (ArgumentError, ValueError):
        # Not SQLAlchemy's message: it may quote a part of a password with a colon or an at sign as the port.
        raise ValueError(
            "is not a database URL; use postgresql://… or sqlite:///path, with user and password percent-encoded"
        ) from None
    if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("needs a file that several processes can open; use sqlite:///path")
    return url


def _request_database(value: str) -> str:
    url = _database(value)
    if url.get_backend_name() not in ("postgresql", "sqlite"):
        raise ValueError("must be a PostgreSQL or SQLite database; use postgresql://… or sqlite:///path")
    return url.render_as_string(hide_password=False)


def _source_database(value: str) -> str:
    return _database(value).render_as_string(hide_password=False) if value else ""


def _is_directory(value: str) -> bool:
    parts = urlsplit(value)
    return parts.scheme == "file" and not parts.netloc and parts.path.startswith("/")


def _place(value: str) -> str:
    parts = urlsplit(value)
    if (parts.scheme == "s3" and parts.netloc) or (_is_directory(value) and parts.path.strip("/")):
        return value.rstrip("/")
    raise ValueError("must be s3://bucket/prefix or file:///absolute/directory")


def _mail(value: str) -> str:
    if value in ("sendgrid:", "sendgrid://", NO_MAIL, "none://"):
        return value.removesuffix("//")
    parts = urlsplit(value)
    if parts.scheme in ("smtp", "smtps") and parts.hostname:
        return value
    if _is_directory(value):
        return value.rstrip("/")
    raise ValueError("must be sendgrid:, smtp://host:port, file:///absolute/directory or none:")


def _http(value: str) -> str:
    if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).netloc):
        raise ValueError("must be http://host:port or https://host")
    if not re.fullmatch(r"[!-~]*", value):
        raise ValueError("must be a URL in ASCII without spaces, because headers of mails and requests contain it")
    return value.rstrip("/")


def _secret_http(value: SecretStr) -> SecretStr:
    _http(value.get_secret_value())
    return value


def _signing_key(value: SecretStr) -> SecretStr:
    if 0 < len(value.get_secret_value()) < _MIN_KEY_LENGTH:
        raise ValueError(f"needs at least {_MIN_KEY_LENGTH} characters; run openssl rand -hex 32")
    if value.get_secret_value() == _PLACEHOLDER_KEY:
        raise ValueError("is the public placeholder of an example file; run openssl rand -hex 32")
    return value


def _address(value: str) -> str:
    try:
        return validate_email(value, check_deliverability=False).normalized if value else ""
    except EmailNotValidError:
        raise ValueError("must be name@domain") from None


def _fault_names(value: str) -> str:
    names = [name.strip() for name in value.split(",")]
    if not set(names) <= set(Fault):
        raise ValueError(f"must be some of {', '.join(Fault)}, separated by commas")
    return ",".join(names)


def _run_retention(value: float) -> float:
    if 0 < value < _MIN_RUN_RETENTION_DAYS:
        raise ValueError(f"must be 0 or at least {_MIN_RUN_RETENTION_DAYS} days: mails are retried for two days")
    return value


PlaceUrl = Annotated[str, AfterValidator(_place)]
HttpUrl = Annotated[str, AfterValidator(_http)]


class SettingsError(Exception):
    """Settings are wrong; the message names each variable and what to do."""


class Settings(BaseSettings):
    """The settings; field ``database_url`` is variable ``EXPORT_DATABASE_URL`` and so on.

    The text under each field is its description, also in ``docs/settings.md``.
    """

    model_config = SettingsConfigDict(
        env_prefix="EXPORT_", extra="ignore", frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )

    database_url: Annotated[str, AfterValidator(_request_database), Field(repr=False)] = (
        f"sqlite:///{HOME / 'export-pipeline.db'}"
    )
    """Database with the `export_requests` table: `postgresql://…` or `sqlite:///path`."""
    source_url: Annotated[str, AfterValidator(_source_database), Field(repr=False)] = ""
    """Database with the exported tables: `postgresql://…`, `sqlite:///path`, or another database of SQLAlchemy, such as
    `mariadb+pymysql://…`. Default: `EXPORT_DATABASE_URL`."""
    source_row_security: bool = False
    """`true`: an export holds the rows that PostgreSQL's row-level security shows to the source's user. By default, an
    export fails where policies would hide rows from it."""
    store_url: PlaceUrl = (HOME / "store").as_uri()
    """Where files are delivered: `s3://bucket/prefix` or `file:///dir`. Mails from a directory carry `file:` links,
    which work only on that machine, unless the gateway serves them (`EXPORT_PUBLIC_URL`)."""
    staging_url: PlaceUrl = (HOME / "staging").as_uri()
    """Where rows wait between steps: `file:///dir`, or `s3://bucket/prefix` for several machines."""
    s3_endpoint_url: HttpUrl = ""
    """Endpoint of an S3-compatible store. Default: AWS."""
    s3_public_endpoint_url: HttpUrl = ""
    """Endpoint by which recipients reach the store, such as `https://files.example.com`. Links are signed for it; all
    other traffic uses `EXPORT_S3_ENDPOINT_URL`. Default: the same endpoint."""
    s3_server_side_encryption: Literal["none", "AES256", "aws:kms"] = "none"
    """`none`, `AES256` (SSE-S3) or `aws:kms` (SSE-KMS)."""
    s3_kms_key_id: str = ""
    """KMS key of `aws:kms`. Default: the bucket's."""
    mail_url: Annotated[str, AfterValidator(_mail), Field(repr=False)] = (HOME / "outbox").as_uri()
    """`sendgrid:` (needs `SENDGRID_API_KEY`), `smtp://user:password@host:port` (`smtps://` = TLS from the start;
    `?starttls=1` = required, `?starttls=0` = never, neither = if the server offers it), an outbox directory
    `file:///dir`, or `none:`: no mail is sent, and requests with recipients are refused."""
    mail_from: str = "exports@localhost.localdomain"
    """Sender of mails if the request names none, `name@domain` or `Name <name@domain>`."""
    mail_attachment_max_bytes: Annotated[int, Field(ge=0, le=20_000_000)] = 0
    """Largest export, in bytes of all its files, that is attached to the mail instead of linked; at most 20000000, 0 =
    always links."""
    catalog: str = ""
    """Directory of dataset declarations (`*.yaml`). Default: the shipped `contacts` and `entities`."""
    link_lifetime_hours: Annotated[float, Field(gt=0, le=168.0)] = 168.0
    """How long a mailed link works, in hours; S3 allows at most 168. Shorter if the signing credentials expire sooner,
    as those of roles do: the run's log reports it, and `EXPORT_PUBLIC_URL` avoids it."""
    retention_days: Annotated[float, Field(gt=0)] = 7.0
    """How long delivered files are kept, in days."""
    audit_retention_days: Annotated[float, Field(ge=0)] = 0.0
    """How long the audit trail `export_events` keeps the events of a request, in days from the last one; they repeat
    filters and addresses. Not less than `EXPORT_RETENTION_DAYS`; 0 = forever."""
    max_attempts: Annotated[int, Field(ge=1)] = 3
    """How many runs a request may use before it fails."""
    claim_lease_seconds: Annotated[float, Field(gt=0)] = 60.0
    """How long a claimed request may be without a run before it is claimed again."""
    pickup_wait_seconds: Annotated[float, Field(ge=0, le=30)] = 4.5
    """How long a tick of the sensor waits for a request to appear: the daemon looks for due sensors every 5 seconds. 0
    = no wait."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 2.0
    """How often a running export writes its progress."""
    heartbeat_timeout_seconds: Annotated[float, Field(gt=0)] = 120.0
    """A running export without progress for this time is considered dead."""
    statement_timeout_seconds: Annotated[float, Field(ge=0)] = 3600.0
    """Longest single statement on the source, 0 = no limit. Set on PostgreSQL, MariaDB and MySQL; on a SQLite file of
    its own checked between batches of rows."""
    shard_rows: Annotated[int, Field(ge=1)] = 2_000_000
    """Rows of one shard, if an export is too large for one file."""
    large_rows: Annotated[int, Field(ge=1)] = LARGE_ROWS
    """An export of more rows is large: its run is tagged `export/size_class: large`, which `tag_concurrency_limits` in
    `dagster.yaml` limits."""

    executor: Executor = "in_process"
    """Where the steps of an export run: `in_process` (all in the run's worker), `multiprocess` (forked beside it),
    `celery` (Celery workers; extra `celery`) or `k8s` (a pod each; extra `k8s`)."""
    executor_concurrency: Annotated[int, Field(ge=1)] = 4
    """Steps of one export at the same time, with `multiprocess` and `k8s`. With Celery the workers decide."""
    celery_broker_url: SecretStr = SecretStr("")
    """Broker of `celery`: `redis://host:6379/0`, or `amqp://user:password@host//` for RabbitMQ."""
    celery_result_url: SecretStr = SecretStr("")
    """Where Celery keeps the results of steps. Default: the broker, which then must be Redis."""
    run_retention_days: Annotated[float, AfterValidator(_run_retention), Field(ge=0)] = 0.0
    """How long Dagster keeps finished export runs, their events and logs: at least 3 days, or 0 = forever. The
    requests' rows stay."""

    public_url: HttpUrl = ""
    """Public URL of the HTTP gateway, such as `https://exports.example.com`. Mails then carry its download links, which
    work as long as the files exist and can be revoked; with `EXPORT_SIGNING_KEY`, mails of recurring exports also carry
    a link to unsubscribe."""
    signing_key: Annotated[SecretStr, AfterValidator(_signing_key)] = SecretStr("")
    """Secret of at least 32 characters that signs the unsubscribe links of recurring exports; the same for every
    process. A change invalidates mailed unsubscribe links; `export-pipeline links UID --revoke` revokes download
    links."""
    alert_webhook_url: Annotated[SecretStr, AfterValidator(_secret_http)] = SecretStr("")
    """Webhook for alerts about failed runs, compatible with Slack (JSON `{"text": …}`). Default: no webhook."""
    alert_email: Annotated[str, AfterValidator(_address)] = ""
    """Address for alerts about failed runs, sent from `EXPORT_MAIL_FROM`. Default: no mail."""
    alert_faults: Annotated[str, AfterValidator(_fault_names)] = "transient,ours"
    """The faults that alert: some of `requester`, `transient`, `ours`, separated by commas."""
    dagster_url: HttpUrl = ""
    """URL of the Dagster UI, for links in alerts. Default: no links."""
    rate_limit_url: Annotated[str, Field(repr=False)] = ""
    """Where the gateway counts requests, as a URL of the library `limits`: `redis://host:6379`, or `memory://` for a
    single process. Default: the database of the requests."""
    rate_limit_per_minute: Annotated[int, Field(ge=1)] = 600
    """Requests per minute of an organization to each of the gateway's APIs that does not document a limit of its
    own."""
    webhook_allow_insecure: bool = False
    """`true`: allow webhooks with `http:` and to private addresses. For tests and closed networks."""
    webhook_retry_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Wait before a failed webhook is tried again; each further wait is four times as long, seven tries in all."""

    sendgrid_api_key: Annotated[SecretStr, Field(validation_alias="SENDGRID_API_KEY")] = SecretStr("")
    """Key of the mail provider `sendgrid:`."""
    sendgrid_host: Annotated[HttpUrl, Field(validation_alias="SENDGRID_HOST")] = "https://api.sendgrid.com"
    """Base URL of SendGrid's API (EU: `https://api.eu.sendgrid.com`)."""

    @model_validator(mode="after")
    def _together(self) -> Settings:
        if clashes := list(self.clashes()):
            raise ValueError("\n".join(clashes))
        return self

    def clashes(self) -> Iterator[str]:
        """Combinations of settings that do not work, each with the names of its variables."""
        if self.mail_url == "sendgrid:" and not self.sendgrid_api_key.get_secret_value():
            yield "EXPORT_MAIL_URL=sendgrid: needs SENDGRID_API_KEY to be set"
        if self.heartbeat_timeout_seconds < _HEARTBEATS_IN_TIMEOUT * self.heartbeat_seconds:
            yield (
                f"EXPORT_HEARTBEAT_TIMEOUT_SECONDS must be at least {_HEARTBEATS_IN_TIMEOUT} times "
                "EXPORT_HEARTBEAT_SECONDS, or healthy exports are considered dead"
            )
        if 0 < self.audit_retention_days < self.retention_days:
            yield "EXPORT_AUDIT_RETENTION_DAYS must be 0 or at least EXPORT_RETENTION_DAYS, to outlive the files"
        if self.alert_email and not self.sends_mail:
            yield f"EXPORT_ALERT_EMAIL needs a provider in EXPORT_MAIL_URL, which is {NO_MAIL}"
        if self.s3_kms_key_id and self.s3_server_side_encryption != "aws:kms":
            yield "EXPORT_S3_KMS_KEY_ID needs EXPORT_S3_SERVER_SIDE_ENCRYPTION=aws:kms"
        if self.executor in BEYOND_ONE_MACHINE:
            yield from self._missing_for_the_executor()
        one, other = f"{self.store_url}/", f"{self.staging_url}/"
        if one.startswith(other) or other.startswith(one):
            yield "EXPORT_STAGING_URL and EXPORT_STORE_URL must not contain each other, because staging is emptied"

    def _missing_for_the_executor(self) -> Iterator[str]:
        shared = (
            ("EXPORT_DATABASE_URL", self.database_url, "postgresql"),
            ("EXPORT_STORE_URL", self.store_url, "s3"),
            ("EXPORT_STAGING_URL", self.staging_url, "s3"),
        )
        for variable, url, scheme in shared:
            if not url.startswith(scheme):
                yield f"EXPORT_EXECUTOR={self.executor} needs {variable}={scheme}://…: workers share no disk"
        if self.executor != "celery":
            return
        broker = self.celery_broker_url.get_secret_value()
        if not broker:
            yield "EXPORT_EXECUTOR=celery needs EXPORT_CELERY_BROKER_URL to be set"
        elif urlsplit(broker).scheme not in _RESULT_BACKENDS and not self.celery_result_url.get_secret_value():
            yield (
                "EXPORT_EXECUTOR=celery needs EXPORT_CELERY_RESULT_URL to be set, such as redis://host:6379/1: "
                "EXPORT_CELERY_BROKER_URL is not Redis, and only Redis keeps the results of steps"
            )

    @property
    def resolved_source_url(self) -> str:
        """The source database's URL, with the default applied."""
        return self.source_url or self.database_url

    @property
    def sends_mail(self) -> bool:
        """Whether a mail provider is configured."""
        return self.mail_url != NO_MAIL

    @property
    def alerts(self) -> bool:
        """Whether failed runs alert operators."""
        return bool(self.alert_webhook_url.get_secret_value() or self.alert_email)

    @property
    def alerting_faults(self) -> frozenset[str]:
        """The faults (``failures.Fault``) that alert operators."""
        return frozenset(self.alert_faults.split(","))

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the environment.

        Raises ``SettingsError``: a value is wrong; the message names each variable, never its value (it may hold a
        password).
        """
        try:
            return cls()
        except ValidationError as error:
            problems = problems_of(error)
        raise SettingsError("\n".join(problems.values()))


def problems_of(error: ValidationError) -> dict[str, str]:
    """The problems by variable; under the empty name the combinations that do not work, one a line."""
    found: dict[str, str] = {}
    for detail in error.errors():
        name = str(detail["loc"][0]) if detail["loc"] else ""
        variable = name if name.isupper() or not name else f"EXPORT_{name.upper()}"
        text = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        found.setdefault(variable, f"{variable}: {text}" if variable else text)
    return found


def local_path(url: str) -> Path | None:
    """The directory of a ``file:///dir`` URL; None for any other scheme."""
    parts = urlsplit(url)
    return Path(unquote(parts.path)) if parts.scheme == "file" else None


def aws_region() -> str | None:
    """The AWS region of the environment; None leaves it to the AWS profile.

    boto3 reads only ``AWS_DEFAULT_REGION``, and presigns for us-east-1 without it; ECS and Lambda, the other SDKs and
    people set ``AWS_REGION``.
    """
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or None


def dagster_home() -> str | None:
    """The directory of Dagster's instance, if ``DAGSTER_HOME`` is set."""
    return os.environ.get("DAGSTER_HOME")
