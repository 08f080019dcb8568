"""Settings: an error names the variable, never its value; the docs list exactly the variables that are read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from export_pipeline.definitions import build_definitions
from export_pipeline.settings import HOME, Settings, SettingsError
from export_pipeline.source.readers import source_of
from export_pipeline_tests.docs.generated import meanings

DOCS = Path(__file__).parents[1] / "docs" / "settings.md"
WRONG = [
    ("EXPORT_DATABASE_URL", "not a url"),
    ("EXPORT_DATABASE_URL", "oracle://app@host/db"),
    ("EXPORT_DATABASE_URL", "sqlite:///:memory:"),
    ("EXPORT_SOURCE_URL", "::"),
    ("EXPORT_SOURCE_URL", "nosuchdatabase://app@localhost/app"),
    ("EXPORT_SOURCE_URL", "postgresql+nosuchdriver://app@localhost/app"),
    ("EXPORT_STAGING_URL", "file:////"),
    ("EXPORT_RETENTION_DAYS", "inf"),
    ("EXPORT_MAIL_URL", "smtp://mail:70000"),
    ("EXPORT_STORE_URL", "ftp://elsewhere/secret-place"),
    ("EXPORT_STORE_URL", "s3:///no-bucket"),
    ("EXPORT_STORE_URL", "file://relative/path"),
    ("EXPORT_STAGING_URL", "staging"),
    ("EXPORT_S3_ENDPOINT_URL", "localhost:9000"),
    ("EXPORT_S3_SERVER_SIDE_ENCRYPTION", "rot13"),
    ("EXPORT_MAIL_URL", "imap://mail"),
    ("EXPORT_LINK_LIFETIME_HOURS", "169"),
    ("EXPORT_RETENTION_DAYS", "-1"),
    ("EXPORT_MAX_ATTEMPTS", "0"),
    ("EXPORT_HEARTBEAT_SECONDS", "often"),
    ("SENDGRID_HOST", "api.sendgrid.com"),
    ("EXPORT_PUBLIC_URL", "exports.example.com"),
    ("EXPORT_PUBLIC_URL", "https://exports.example.com/a\r\nb"),
    ("EXPORT_SIGNING_KEY", "short-and-secret"),
    ("EXPORT_SIGNING_KEY", "AT_LEAST_THIRTY_TWO_CHARACTERS_OF_IT"),
    ("EXPORT_ALERT_WEBHOOK_URL", "hooks.example.com/T0/s3cret"),
    ("EXPORT_ALERT_EMAIL", "nobody-at-all"),
    ("EXPORT_ALERT_FAULTS", "everybody"),
    ("EXPORT_DAGSTER_URL", "dagster.internal"),
    ("EXPORT_EXECUTOR", "threads-of-mine"),
    ("EXPORT_RUN_RETENTION_DAYS", "0.25"),
]


@pytest.mark.parametrize(("variable", "value"), WRONG)
def test_a_wrong_value_stops_the_start_and_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as stopped:
        build_definitions()
    assert variable in str(stopped.value)
    assert value not in str(stopped.value)
    assert stopped.value.__cause__ is None


def beyond(executor: str, **wrong: str) -> dict[str, str]:
    """The settings that an executor beyond one machine needs; the wrong ones come first."""
    right = {
        "EXPORT_DATABASE_URL": "postgresql://app@db/app",
        "EXPORT_STORE_URL": "s3://bucket/exports",
        "EXPORT_STAGING_URL": "s3://bucket/staging",
        "EXPORT_EXECUTOR": executor,
    }
    return wrong | {name: value for name, value in right.items() if name not in wrong}


TOGETHER = [
    {"EXPORT_STAGING_URL": "s3://b", "EXPORT_STORE_URL": "s3://b/exports"},
    {"EXPORT_STAGING_URL": "file:///srv/exports/staging", "EXPORT_STORE_URL": "file:///srv/exports"},
    {"EXPORT_HEARTBEAT_SECONDS": "600"},
    {"EXPORT_S3_KMS_KEY_ID": "key"},
    {"EXPORT_AUDIT_RETENTION_DAYS": "6"},
    {"EXPORT_ALERT_EMAIL": "ops@example.com", "EXPORT_MAIL_URL": "none:"},
    beyond("k8s", EXPORT_STAGING_URL="file:///srv/staging"),
    beyond("k8s", EXPORT_STORE_URL="file:///srv/store"),
    beyond("k8s", EXPORT_DATABASE_URL="sqlite:////srv/app.db"),
    beyond("celery", EXPORT_CELERY_BROKER_URL=""),
    beyond("celery", EXPORT_CELERY_RESULT_URL="", EXPORT_CELERY_BROKER_URL="amqp://app:s3cret@host//"),
]


@pytest.mark.parametrize("values", TOGETHER, ids=str)
def test_values_that_do_not_go_together_stop_the_start(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for variable, value in values.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError, match=next(iter(values))):
        build_definitions()


def test_a_broker_that_keeps_no_results_is_taken_with_a_place_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = {"EXPORT_CELERY_BROKER_URL": "amqp://app@host//", "EXPORT_CELERY_RESULT_URL": "redis://host/1"}
    for variable, value in beyond("celery", **broker).items():
        monkeypatch.setenv(variable, value)
    assert Settings.from_environment().executor == "celery"


def test_every_wrong_value_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_STORE_URL", "nowhere")
    monkeypatch.setenv("EXPORT_MAIL_URL", "nobody")
    with pytest.raises(SettingsError, match=r"(?s)EXPORT_STORE_URL.*EXPORT_MAIL_URL"):
        Settings.from_environment()


def test_everything_that_does_not_go_together_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_S3_KMS_KEY_ID", "key")
    monkeypatch.setenv("EXPORT_HEARTBEAT_SECONDS", "600")
    for variable, value in beyond("celery", EXPORT_CELERY_BROKER_URL="", EXPORT_STORE_URL="file:///srv/x").items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as stopped:
        Settings.from_environment()
    assert len(str(stopped.value).splitlines()) == 4


def test_sendgrid_needs_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SENDGRID_API_KEY", raising=False)
    monkeypatch.setenv("EXPORT_MAIL_URL", "sendgrid:")
    with pytest.raises(SettingsError, match="SENDGRID_API_KEY"):
        Settings.from_environment()


def test_a_sender_that_is_no_address_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_MAIL_FROM", "nobody")
    with pytest.raises(SettingsError, match="EXPORT_MAIL_FROM"):
        build_definitions()


@pytest.mark.parametrize("variable", ["EXPORT_DATABASE_URL", "EXPORT_SOURCE_URL"])
@pytest.mark.parametrize("url", ["postgresql://app:p@ss:hunter2/x@host/app", "postgresql://app:s3@host:hunter2/app"])
def test_no_part_of_a_password_is_told_as_a_port(monkeypatch: pytest.MonkeyPatch, variable: str, url: str) -> None:
    monkeypatch.setenv(variable, url)
    with pytest.raises(SettingsError, match=variable) as stopped:
        Settings.from_environment()
    assert "hunter2" not in str(stopped.value)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_plain_postgresql_urls_name_their_driver(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    """SQLAlchemy 2.0 and 2.1 differ in the driver that ``postgresql://`` means, and know no ``postgres://``."""
    monkeypatch.setenv("EXPORT_DATABASE_URL", f"{scheme}://app:s3cret@localhost/app")
    settings = Settings.from_environment()
    assert settings.database_url == "postgresql+psycopg://app:s3cret@localhost/app"
    assert settings.resolved_source_url == settings.database_url


def test_no_credential_is_in_what_a_program_prints_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXPORT_DATABASE_URL", "EXPORT_SOURCE_URL"):
        monkeypatch.setenv(name, "postgresql://app:s3cret@localhost/app")
    monkeypatch.setenv("EXPORT_MAIL_URL", "smtp://app:s3cret@localhost:25")
    monkeypatch.setenv("EXPORT_RATE_LIMIT_URL", "redis://:s3cret@localhost:6379")
    monkeypatch.setenv("EXPORT_ALERT_WEBHOOK_URL", "https://hooks.example.com/s3cret")
    monkeypatch.setenv("EXPORT_SIGNING_KEY", "s3cret" * 6)
    monkeypatch.setenv("SENDGRID_API_KEY", "s3cret")
    settings = Settings.from_environment()
    assert "store_url" in repr(settings)
    for printed in (settings, source_of(settings)):
        assert "s3cret" not in f"{printed!r} {printed}"


def test_docs_list_every_variable_with_its_default_and_meaning() -> None:
    rows = re.findall(r"^\* `([A-Z0-9_]+)`(?: \(`(.*?)`\))?: (.*)$", DOCS.read_text(), re.MULTILINE)
    documented = {name: (default.replace("~", str(HOME.parent)[1:]), meaning) for name, default, meaning in rows}
    assert len(documented) == len(rows)
    expected = {}
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias if isinstance(field.validation_alias, str) else f"EXPORT_{name.upper()}"
        default = field.get_default(call_default_factory=True)
        shown = default.get_secret_value() if hasattr(default, "get_secret_value") else str(default)
        expected[variable] = (shown.replace("sqlite:////", "sqlite:///"), meanings()[name])
    assert documented == expected
