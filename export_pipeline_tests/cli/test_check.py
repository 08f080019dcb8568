"""``export-pipeline check`` on the demo's database: a sound installation is sound, and every mistake is named."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from click.testing import CliRunner, Result

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.check import Finding, State, ok, services
from export_pipeline.check.environment import Environment
from export_pipeline.check.installation import PARTS, Part, check_installation
from export_pipeline.cli import cli
from export_pipeline.database.engine import create_engine
from export_pipeline.database.migrate import upgrade
from export_pipeline.settings import Settings
from export_pipeline_tests.adversarial import load_demo_data
from export_pipeline_tests.revisions import LATER, add_later_revision
from export_pipeline_tests.servers.mariadb import MariadbServer
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Bucket
from export_pipeline_tests.servers.sendgrid import API_KEY, SendGridSink
from export_pipeline_tests.servers.smtp import serve_smtp

NOWHERE = "127.0.0.1:9"


@dataclass(frozen=True)
class Mistake:
    """What is done wrong, and the line that must say so."""

    part: str
    said: str
    """Of subject and text, as a pattern."""
    environment: dict[str, str] = field(default_factory=dict)
    sql: str = ""
    """Run by the owner of the database."""
    catalog: tuple[str, str, str] | None = None
    """A file, what stands there, what stands there now."""
    state: State = State.WRONG


CONTACTS, ENTITIES = "contacts.yaml", "entities.yaml"
MISTAKES = {
    "a wrong column": Mistake(
        "source",
        r"contacts\.columns\.city: Table contacts has no column citty\. Did you mean city\?",
        catalog=(CONTACTS, "{name: city,", "{name: city, source: citty,"),
    ),
    "a wrong table": Mistake(
        "source",
        r"entities\.table: There is no table or view entitties .*Did you mean entities\?",
        catalog=(ENTITIES, "table: entities", "table: entitties"),
    ),
    "a wrong type": Mistake(
        "source",
        r"contacts\.columns\.birth_date: Column birth_date is date in the database and integer in the catalog",
        catalog=(CONTACTS, "{name: birth_date, type: date", "{name: birth_date, type: integer"),
    ),
    "a wrong tenant": Mistake(
        "source",
        r"contacts\.tenant: Table contacts has no column organisation_id\. Did you mean organization_id\?",
        catalog=(CONTACTS, "tenant: organization_id\n", "tenant: organisation_id\n"),
    ),
    "a wrong type of the tenant": Mistake(
        "source",
        r"contacts\.tenant_type: Column organization_id is uuid in the database and integer in the catalog",
        catalog=(CONTACTS, "tenant_type: uuid", "tenant_type: integer"),
    ),
    "no right to a table": Mistake(
        "source", r"entities\.table: .*SQLSTATE 42501", sql="REVOKE SELECT ON entities FROM {reader}"
    ),
    "no right to a child list": Mistake(
        "source",
        r"contacts\.children\.comet_tokens: .*SQLSTATE 42501",
        sql="REVOKE SELECT ON contact_tokens FROM {reader}",
    ),
    "no table of lists": Mistake(
        "source", r"contacts\.lists\.lists: There is no table or view contact_lists", sql="DROP TABLE contact_lists"
    ),
    "a list member of another type": Mistake(
        "source",
        r"contacts\.lists: The source database",
        sql="ALTER TABLE contact_list_members ALTER contact_id TYPE text",
    ),
    "no unique key": Mistake(
        "source",
        r"entities\.key: Table entities has no unique index on id",
        sql="ALTER TABLE entities DROP CONSTRAINT entities_pkey",
        state=State.WARNING,
    ),
    "row-level security": Mistake(
        "source",
        r"entities\.table: Row-level security .*EXPORT_SOURCE",
        sql="ALTER TABLE entities ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON entities USING (is_client)",
        state=State.WARNING,
    ),
    "a typo in the catalog": Mistake(
        "source",
        r"catalog: entities\.yaml:\d+: .*'unsigned' is not one of text, integer",
        catalog=(ENTITIES, "{name: risk_score, type: integer", "{name: risk_score, type: unsigned"),
    ),
    "a wrong password of the source": Mistake(
        "source",
        r"connection: The source database",
        environment={"EXPORT_SOURCE_URL": "postgresql://nobody:s3cret@{host}/{name}"},
    ),
    "no request tables": Mistake(
        "requests",
        r"revision: The database has no tables of export-pipeline yet",
        sql="DROP TABLE export_pipeline_version",
    ),
    "a request database that is read-only": Mistake(
        "requests",
        r"rights: The database is read-only",
        sql="ALTER DATABASE {name} SET default_transaction_read_only = on",
    ),
    "a request database that is not there": Mistake(
        "requests",
        r"connection: The request database could not be opened",
        environment={"EXPORT_DATABASE_URL": f"postgresql://app:s3cret@{NOWHERE}/app?connect_timeout=2"},
    ),
    "no bucket": Mistake("store", r"write: .*NoSuchBucket", environment={"EXPORT_STORE_URL": "s3://no-such-bucket/x"}),
    "a wrong secret of S3": Mistake(
        "store", r"write: .*SignatureDoesNotMatch", environment={"AWS_SECRET_ACCESS_KEY": "s3cret-and-wrong"}
    ),
    "links that only this network can open": Mistake(
        "store",
        r"link host: Links point to http://127\.0\.0\.1:\d+, which only this network can reach",
        state=State.WARNING,
    ),
    "credentials that die before the link": Mistake(
        "store",
        r"link lifetime: Links are valid for 1\.0 hours",
        environment={"AWS_SESSION_TOKEN": "s3cret-token"},
        state=State.WARNING,
    ),
    "a staging directory that is read-only": Mistake(
        "staging",
        r"write, read, delete: It failed \(\w+\)\. Check .*EXPORT_STAGING_URL",
        environment={"EXPORT_STAGING_URL": "file:///proc/staging"},
    ),
    "a mail server that is not there": Mistake(
        "mail",
        r"provider: .*ConnectionRefusedError.*host and port",
        environment={"EXPORT_MAIL_URL": f"smtp://{NOWHERE}"},
    ),
    "a wrong login of the mail server": Mistake(
        "mail",
        r"provider: .*535.*The server refuses the login",
        environment={"EXPORT_MAIL_URL": "smtp://app:s3cret@{mail}"},
    ),
    "a sender that is no address": Mistake("mail", r"sender: EXPORT_MAIL_FROM", environment={"EXPORT_MAIL_FROM": "x"}),
    "an outbox that cannot be written": Mistake(
        "mail", r"provider: .*outbox", environment={"EXPORT_MAIL_URL": "file:///proc/outbox"}
    ),
    "an unknown setting": Mistake(
        "settings",
        r"EXPORT_RETENTION_DAY: is not a setting.*Did you mean EXPORT_RETENTION_DAYS\?",
        environment={"EXPORT_RETENTION_DAY": "30"},
    ),
    "a wrong setting": Mistake(
        "settings", r"EXPORT_MAX_ATTEMPTS: must be greater than or equal to 1", environment={"EXPORT_MAX_ATTEMPTS": "0"}
    ),
    "settings that do not go together": Mistake(
        "settings", r"EXPORT_S3_KMS_KEY_ID needs", environment={"EXPORT_S3_KMS_KEY_ID": "key"}
    ),
    "a webhook of alerts without its path": Mistake(
        "alerts",
        r"webhook: .*names only a host",
        environment={"EXPORT_ALERT_WEBHOOK_URL": "https://hooks.example.com"},
    ),
    "nobody who is alerted": Mistake(
        "alerts",
        r"No alerts of failed exports are sent",
        environment={"EXPORT_ALERT_WEBHOOK_URL": ""},
        state=State.WARNING,
    ),
    "a gateway that does not answer": Mistake(
        "gateway",
        r"public URL: .*ConnectionError",
        environment={"EXPORT_PUBLIC_URL": f"http://{NOWHERE}"},
        state=State.WARNING,
    ),
    "a column in other letters": Mistake(
        "source",
        r"contacts\.columns\.city: Table contacts has no column City\. Did you mean city\?",
        catalog=(CONTACTS, "{name: city,", "{name: city, source: City,"),
    ),
    "a wrong column of a child list": Mistake(
        "source",
        r"contacts\.children\.comet_tokens\.value: Table contact_tokens has no column tokens\. Did you mean token\?",
        catalog=(CONTACTS, "value: token", "value: tokens"),
    ),
    "a wrong tenant of the segments": Mistake(
        "source",
        r"contacts\.segments\.tenant: Table contact_segments has no column organization_id\.",
        sql="ALTER TABLE contact_segments RENAME organization_id TO owner",
    ),
    "a child list ordered by a column that is gone": Mistake(
        "source",
        r"contacts\.children\.comet_tokens\.order_by: Table contact_tokens has no column",
        sql="ALTER TABLE contact_tokens RENAME id TO number",
    ),
    "no right to one column": Mistake(
        "source",
        r"entities\.table: .*SQLSTATE 42501",
        sql="REVOKE SELECT ON entities FROM {reader}; GRANT SELECT (id, organization_id) ON entities TO {reader}",
    ),
    "no right to the schema": Mistake(
        "source",
        r"entities\.table: .*SQLSTATE 42501",
        sql="CREATE SCHEMA crm; ALTER TABLE entities SET SCHEMA crm",
        catalog=(ENTITIES, "table: entities", "table: crm.entities"),
    ),
    "a date that is declared a timestamp": Mistake(
        "source",
        r"contacts\.columns\.created_at: Column created_at is date in the database and timestamp in the catalog",
        sql="ALTER TABLE contacts ALTER created_at TYPE date",
        state=State.WARNING,
    ),
    "a request database of a newer version": Mistake(
        "requests",
        r"revision: The database is at revision 9999, newer than",
        sql="UPDATE export_pipeline_version SET version_num = '9999'",
    ),
    "no right to write requests": Mistake(
        "requests",
        r"rights on (export_\w+|recurring_exports|email_charges|api_keys|webhook_secrets|rate_windows): "
        r"(INSERT|UPDATE|DELETE) is refused \(SQLSTATE 42501\)",
        sql="GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}",
        environment={"EXPORT_DATABASE_URL": "postgresql://{reader}:s3cret@{host}/{name}"},
    ),
    "a wrong password of the request database": Mistake(
        "requests",
        r"connection: .*The server refuses the login",
        environment={"EXPORT_DATABASE_URL": "postgresql://{reader}:not-s3cret@{host}/{name}"},
    ),
    "a directory store that cannot be written": Mistake(
        "store", r"write: The store directory failed", environment={"EXPORT_STORE_URL": "file:///proc/store"}
    ),
    "a store that does not answer": Mistake(
        "store", r"write: S3 did not answer", environment={"EXPORT_S3_ENDPOINT_URL": f"http://{NOWHERE}"}
    ),
    "a bucket of staging that is not there": Mistake(
        "staging",
        r"write, read, delete: .*EXPORT_STAGING_URL",
        environment={"EXPORT_STAGING_URL": "s3://no-such-bucket/x"},
    ),
    "a broker that does not answer": Mistake(
        "executor",
        r"broker: EXPORT_CELERY_BROKER_URL does not answer",
        environment={
            "EXPORT_EXECUTOR": "celery",
            "EXPORT_CELERY_BROKER_URL": f"redis://:s3cret@{NOWHERE}/0",
            "EXPORT_STAGING_URL": "s3://staging/x",
        },
    ),
    "a published signing key": Mistake(
        "settings",
        r"EXPORT_SIGNING_KEY: is the public placeholder",
        environment={"EXPORT_SIGNING_KEY": "AT_LEAST_THIRTY_TWO_CHARACTERS_OF_IT"},
    ),
}
SECRET = re.compile(r"s3cret|wrong p@ss|right p|X-Amz")


@dataclass
class Installation:
    """The demo's tables and the request tables on PostgreSQL, S3, a mail server that wants a login."""

    server: PostgresServer
    name: str
    """Of the database, which all tests share until one changes it."""
    reader: str
    catalog: Path
    mail: str
    bucket: S3Bucket
    set_variable: Callable[[str, str], None]
    own: bool = False

    @property
    def host(self) -> str:
        return f"{self.server.host}:{self.server.port}"

    def use(self) -> None:
        """Let the environment name it."""
        for variable, value in {
            "EXPORT_DATABASE_URL": self.server.url(self.name),
            "EXPORT_SOURCE_URL": f"postgresql://{self.reader}:s3cret@{self.host}/{self.name}",
            "EXPORT_CATALOG": str(self.catalog),
            "EXPORT_STORE_URL": f"s3://{self.bucket.name}/exports",
            "EXPORT_STAGING_URL": f"file://{self.catalog.parent}/staging",
            "EXPORT_S3_ENDPOINT_URL": self.bucket.endpoint,
            "EXPORT_MAIL_URL": f"smtp://app:right%20p%40ss@{self.mail}",
            "EXPORT_ALERT_WEBHOOK_URL": "https://hooks.example.com/services/s3cret",
        }.items():
            self.set_variable(variable, value)

    def execute(self, statement: str) -> None:
        """As the owner of a database that no other test sees."""
        if not self.own:
            origin, self.name, self.own = self.name, f"t_{secrets.token_hex(6)}", True
            self._administer(f"CREATE DATABASE {self.name} TEMPLATE {origin}")
            self.use()
        with closing(psycopg.connect(self.server.url(self.name), autocommit=True)) as connection:
            connection.execute(statement.format(name=self.name, reader=self.reader).encode())

    def make(self, *mistakes: Mistake) -> None:
        for mistake in mistakes:
            if mistake.sql:
                self.execute(mistake.sql)
            if mistake.catalog:
                file, right, wrong = mistake.catalog
                text = (self.catalog / file).read_text()
                assert right in text
                (self.catalog / file).write_text(text.replace(right, wrong, 1))
        for mistake in mistakes:
            for variable, value in mistake.environment.items():
                self.set_variable(
                    variable, value.format(name=self.name, reader=self.reader, host=self.host, mail=self.mail)
                )

    def end(self) -> None:
        if self.own:
            self._administer(f"DROP DATABASE {self.name} WITH (FORCE)")

    def _administer(self, statement: str) -> None:
        with closing(psycopg.connect(self.server.admin_url, autocommit=True)) as connection:
            connection.execute(statement.encode())


@pytest.fixture(scope="module")
def template(postgres_server: PostgresServer) -> Iterator[tuple[str, str]]:
    """A database with the demo's rows and the request tables, and a role that may read the former."""
    reader = f"reader_{secrets.token_hex(6)}"
    with postgres_server.fresh_database() as url:
        load_demo_data(url, contacts=20, entities=20)
        engine = create_engine(Settings(database_url=url).database_url)
        upgrade(engine)
        with engine.begin() as connection:
            connection.exec_driver_sql(f"CREATE ROLE {reader} LOGIN PASSWORD 's3cret'")
            connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {reader}")
        engine.dispose()
        yield str(sa.make_url(url).database), reader
    with closing(psycopg.connect(postgres_server.admin_url, autocommit=True)) as connection:
        connection.execute(f"DROP ROLE {reader}".encode())


@pytest.fixture(scope="module")
def mail_server() -> Iterator[str]:
    with serve_smtp(auth_require_tls=False) as sink:
        yield f"{sink.host}:{sink.port}"


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    """A copy of the shipped datasets, to be spoiled."""
    directory = tmp_path / "catalog"
    directory.mkdir()
    for file in (resources.files("export_pipeline.catalog") / "datasets").iterdir():
        shutil.copy(str(file), directory)
    return directory


@pytest.fixture
def installation(
    postgres_server: PostgresServer,
    template: tuple[str, str],
    mail_server: str,
    s3_bucket: S3Bucket,
    catalog: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Installation]:
    name, reader = template
    found = Installation(postgres_server, name, reader, catalog, mail_server, s3_bucket, monkeypatch.setenv)
    found.use()
    yield found
    found.end()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["check", *arguments])


def said(finding: Finding) -> str:
    return f"{finding.subject}: {finding.text}"


def test_a_sound_installation_is_sound(installation: Installation, s3_bucket: S3Bucket) -> None:
    shown = run()
    assert shown.exit_code == 0, shown.output
    assert "0 wrong" in shown.output
    for line in (
        "requests: revision: ",
        "source: contacts: ",
        "source: entities: ",
        "store: link: a signed link",
        "store: delete: ",
        "staging: ",
        "mail: provider: smtp accepts mails",
    ):
        assert f"ok       {line}" in shown.output
    assert not SECRET.search(shown.output)
    assert s3_bucket.keys() == [], "nothing stays behind"


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_nothing_else_is_called_wrong(installation: Installation, name: str) -> None:
    mistake = MISTAKES[name]
    installation.make(mistake)
    concerned = [part for part in PARTS if part.name == mistake.part]
    found = [finding for _part, finding in check_installation(parts=concerned)]
    named = [finding for finding in found if re.search(mistake.said, said(finding))]
    assert named, found
    assert {finding.state for finding in named} <= {mistake.state, State.WRONG}
    assert [one for one in found if one.state is State.WRONG and one not in named] == []
    assert not any(SECRET.search(said(finding)) for finding in found)


TOGETHER = [
    "a wrong column",
    "a wrong type",
    "no right to a table",
    "no right to a child list",
    "no table of lists",
    "no bucket",
    "a staging directory that is read-only",
    "a wrong login of the mail server",
    "a sender that is no address",
    "an unknown setting",
    "a wrong setting",
    "settings that do not go together",
    "a webhook of alerts without its path",
    "a gateway that does not answer",
]


def test_many_mistakes_at_once_are_all_named(installation: Installation) -> None:
    installation.make(*[MISTAKES[name] for name in TOGETHER])
    shown = run("--json")
    assert shown.exit_code == 1
    document = json.loads(shown.output)
    assert document["ok"] is False
    for name in TOGETHER:
        mistake = MISTAKES[name]
        assert [
            one
            for one in document["findings"]
            if (one["part"], one["state"]) == (mistake.part, mistake.state)
            and re.search(mistake.said, f"{one['subject']}: {one['text']}")
        ], name
    assert not SECRET.search(shown.output)


def test_an_older_revision_is_named(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    installation.make()
    add_later_revision(monkeypatch, tmp_path)
    found = [one for one in json.loads(run("--json").output)["findings"] if one["state"] == "wrong"]
    assert [(one["part"], one["subject"]) for one in found] == [("requests", "revision")]
    assert re.search(rf"at revision 0001, this version needs {LATER}.*db upgrade", found[0]["text"])


def findings(*parts: str) -> list[tuple[State, str]]:
    chosen = [part for part in PARTS if part.name in parts]
    return [(finding.state, said(finding)) for _part, finding in check_installation(parts=chosen)]


def wrong(*parts: str) -> list[str]:
    return [text for state, text in findings(*parts) if state is State.WRONG]


@pytest.mark.parametrize("shared", [True, False], ids=["one file", "two files"])
def test_the_embedded_default_is_sound_on_either_reader(
    tmp_path: Path, catalog: Path, monkeypatch: pytest.MonkeyPatch, *, shared: bool
) -> None:
    source, requests = tmp_path / "app.db", tmp_path / ("app.db" if shared else "requests.db")
    load_demo_data(f"sqlite:///{source}", contacts=20, entities=20)
    monkeypatch.setenv("EXPORT_DATABASE_URL", f"sqlite:///{requests}")
    monkeypatch.setenv("EXPORT_SOURCE_URL", f"sqlite:///{source}")
    monkeypatch.setenv("EXPORT_CATALOG", str(catalog))
    upgrade(create_engine(f"sqlite:///{requests}"))
    assert wrong("requests", "source") == []
    contacts = catalog / "contacts.yaml"
    contacts.write_text(contacts.read_text().replace("{name: email, type: text", "{name: email, type: integer", 1))
    (named,) = wrong("source")
    assert "contacts.columns.email: Column email is text in the database and integer in the catalog" in named


def test_a_request_database_that_was_never_made_is_not_made_by_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORT_DATABASE_URL", f"sqlite:///{tmp_path}/new/app.db")
    assert len(wrong("requests", "source")) == 2
    assert not (tmp_path / "new").exists()


def test_a_key_of_sendgrid_that_may_not_send_is_named(
    sendgrid_sink: SendGridSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXPORT_MAIL_URL", "sendgrid:")
    monkeypatch.setenv("SENDGRID_HOST", sendgrid_sink.url)
    monkeypatch.setenv("SENDGRID_API_KEY", API_KEY)
    assert wrong("mail") == []
    sendgrid_sink.scopes = ("templates.read",)
    assert "sendgrid key without mail.send" in wrong("mail")[0]
    monkeypatch.setenv("SENDGRID_API_KEY", "SG.s3cret")
    (named,) = wrong("mail")
    assert "sendgrid 401" in named
    assert "s3cret" not in named
    assert sendgrid_sink.accepted == []


def test_a_database_in_another_encoding_is_named(
    postgres_server: PostgresServer, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres_server.fresh_database() as url, closing(psycopg.connect(url, autocommit=True)) as admin:
        for encoding in ("LATIN1", "SQL_ASCII"):
            name = f"t_{encoding.lower()}"
            admin.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0".encode())
            monkeypatch.setenv("EXPORT_DATABASE_URL", f"{postgres_server.url(name)}?client_encoding=utf8")
            assert any(f"server_encoding: It is {encoding}" in text for text in wrong("requests"))
            assert any("encoding: The database does not know" in text for _, text in findings("source")) == (
                encoding == "SQL_ASCII"
            )
            admin.execute(f"DROP DATABASE {name}".encode())


@pytest.mark.parametrize(("seconds", "state"), [(0, State.OK), (10, State.WARNING), (-60, State.WRONG)])
def test_a_clock_that_is_wrong_is_named(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, seconds: int, state: State
) -> None:
    """This machine's clock is a mock: it cannot be put back and forth in a test."""
    now = timedelta(seconds=seconds)
    monkeypatch.setattr(services, "utc_now", lambda: datetime.now(UTC) + now)
    (clock,) = [(found, text) for found, text in findings("requests") if text.startswith("clock: ")]
    assert clock[0] is state
    assert not seconds or f"{abs(seconds)} s apart" in clock[1]


def test_a_driver_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_SOURCE_URL", "mysql+mysqldb://app:s3cret@db/app")
    (named,) = wrong("source")
    assert named.startswith("connection: The database driver that EXPORT_SOURCE_URL names is not installed")


def test_a_wrong_catalog_directory_does_not_hide_the_source(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.set_variable("EXPORT_CATALOG", "/no/such/directory")
    installation.set_variable("EXPORT_DATABASE_URL", "nothing")
    assert ("connection: postgresql answers") in [text for _, text in findings("source")]


def test_mariadb_is_looked_at_as_it_is_read(
    mariadb_server: MariadbServer, catalog: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (catalog / "contacts.yaml").unlink()
    text = (catalog / "entities.yaml").read_text().replace("table: entities", "table: people", 1)
    (catalog / "entities.yaml").write_text(text)
    declared = parse_dataset(text)
    types = {"text": "varchar(200)", "uuid": "char(36)", "json": "json", "timestamp": "datetime(6)", "integer": "int"}
    columns = ", ".join(f"{one.source} {types.get(one.type, str(one.type))}" for one in declared.columns)
    with mariadb_server.fresh_database() as url:
        name = url.rpartition("/")[2]
        mariadb_server.execute(f"CREATE TABLE {name}.people ({columns}, PRIMARY KEY (id))")
        monkeypatch.setenv("EXPORT_SOURCE_URL", url)
        monkeypatch.setenv("EXPORT_CATALOG", str(catalog))
        assert [text for state, text in findings("source") if state is not State.OK] == []
        mariadb_server.execute(
            f"ALTER TABLE {name}.people MODIFY id binary(16), DROP COLUMN email, MODIFY risk_score date"
        )
        assert [text.split(":")[0] for text in wrong("source")] == [
            "entities.columns.email",
            "entities.columns.id",
            "entities.columns.risk_score",
        ]


def silent() -> Iterator[Finding]:
    yield ok("first", "was found")
    threading.Event().wait(30)


def broken() -> Iterator[Finding]:
    raise RuntimeError("s3cret")
    yield


def test_a_part_that_is_silent_or_broken_keeps_nobody_waiting_and_hides_nothing() -> None:
    parts = [
        Part("silent", frozenset(), lambda _environment: silent()),
        Part("broken", frozenset(), lambda _environment: broken()),
        Part("skipped", frozenset({"EXPORT_MAIL_URL"}), lambda _environment: silent()),
        Part("sound", frozenset(), lambda _environment: [ok("it", "works")]),
    ]
    environment = Environment(Settings(), ("EXPORT_MAIL_URL: x",), frozenset({"EXPORT_MAIL_URL"}))
    began = time.monotonic()
    found = [
        (part, finding.state, finding.subject)
        for part, finding in check_installation(environment, parts=parts, seconds=1)
    ]
    assert time.monotonic() - began < 15
    assert found[1:] == [
        ("silent", "ok", "first"),
        ("silent", "wrong", "time"),
        ("broken", "wrong", "error"),
        ("skipped", "warning", "skipped"),
        ("sound", "ok", "it"),
    ]


def test_a_wrong_setting_does_not_keep_the_others_from_being_looked_at(installation: Installation) -> None:
    installation.set_variable("EXPORT_STORE_URL", "nowhere")
    installation.set_variable("EXPORT_RETENTION_DAYS", "x")
    installation.set_variable("EXPORT_S3_KMS_KEY_ID", "key")
    found = findings("requests", "store")
    assert {text.split(":")[0] for state, text in found if state is State.WRONG} == {
        "EXPORT_STORE_URL",
        "EXPORT_RETENTION_DAYS",
        "together",
    }
    assert (State.WARNING, "skipped: It was not checked: EXPORT_STORE_URL is wrong.") in found
    assert any(text.startswith("revision: ") for state, text in found if state is State.OK)
