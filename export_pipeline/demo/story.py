"""The demo step by step: data, requests in plain SQL, live progress, files, links, mails."""

from __future__ import annotations

import email
import email.policy
import hashlib
import json
import os
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import click
import sqlalchemy as sa
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from export_pipeline.database import migrate
from export_pipeline.database.engine import create_engine, reading, utc_now
from export_pipeline.database.enums import FINISHED, RequestStatus
from export_pipeline.database.tables import organization_email_domains, organization_members, organizations
from export_pipeline.demo.data import ORGANIZATIONS, load_demo_data
from export_pipeline.demo.data.generator import Organization
from export_pipeline.demo.data.rows import list_id, segment_id
from export_pipeline.demo.home import BUCKET, PREFIX, Home, Processes, free_port
from export_pipeline.demo.s3_server import serve_s3
from export_pipeline.requests.models import RequestState, overall_progress, read_state
from export_pipeline.settings import Settings
from export_pipeline.stages.manifest import ManifestFile, read_manifest
from export_pipeline.stages.upload import describe
from export_pipeline.stages.verify import verify
from export_pipeline.storage import open_store
from export_pipeline.storage.store import Store

TIMEOUT_SECONDS = 900
POLL_SECONDS = 0.5
LINK_LIFETIME = timedelta(hours=1)
LINKS_SHOWN = 2
EXPECTED_MAILS = 7
"""One for each recipient of the five requests that succeed, and one for the requester of the one that fails."""
UNKNOWN_COLUMN = "a column that does not exist"


def run_demo(home: Home, rows: int, *, ui: bool) -> None:
    """Run the demo; with ``ui`` keep it up until Ctrl-C.

    Raises ``click.ClickException``: an export did not end as expected.
    """
    console = Console(highlight=False, soft_wrap=True)
    home.create()
    with serve_s3(home.objects, access_key_id=home.access_key_id, secret_access_key=home.secret_access_key) as endpoint:
        os.environ.update(home.environment(endpoint))
        settings = Settings.from_environment()
        engine = _prepare(console, settings, rows)
        with _dagster(console, home, endpoint, ui=ui):
            uids = _insert(console, home)
            states = _watch(console, engine, uids)
            _show_results(console, open_store(settings), home, states)
            if ui:
                console.print("\nThe UI and the S3 endpoint stay up until Ctrl-C.")
                with suppress(KeyboardInterrupt):
                    threading.Event().wait()
                console.print("Stopping.")
    console.print("\nEverything is stopped; the links work while the S3 endpoint is up: export-pipeline demo --ui")


def _prepare(console: Console, settings: Settings, rows: int) -> sa.Engine:
    engine = create_engine(settings.database_url)
    migrate.upgrade(engine)
    began = time.perf_counter()
    made = load_demo_data(settings.database_url, contacts=rows, entities=max(rows // 5, 1))
    with engine.begin() as connection:
        connection.execute(
            organizations.insert(),
            [{"id": one.id, "name": one.name, "time_zone": one.time_zone} for one in ORGANIZATIONS],
        )
        first = {"organization_id": ORGANIZATIONS[0].id}
        permissions = ["contacts:export", "entities:export"]
        member = {"member_id": "ana", "email": "ana@example.com", "locale": "pt", "permissions": permissions}
        connection.execute(organization_members.insert(), first | member)
        connection.execute(
            organization_email_domains.insert(), first | {"domain": "cafe.example.com", "verified_at": utc_now()}
        )
    rows_made = f"{made['contacts']:,} contacts, {made['entities']:,} entities"
    console.print(f"Made {rows_made} of {len(ORGANIZATIONS)} organizations in {time.perf_counter() - began:.1f} s.")
    return engine


@contextmanager
def _dagster(console: Console, home: Home, endpoint: str, *, ui: bool) -> Iterator[None]:
    code_port = free_port()
    home.write_workspace(code_port)
    with Processes(home.logs, home.environment(endpoint)) as processes:
        processes.code_server(code_port)
        processes.daemon(home.workspace)
        console.print(f"S3 endpoint {endpoint}, Dagster daemon and code server are up (logs in {home.logs}).")
        if ui:
            port = free_port()
            processes.webserver(home.workspace, port)
            console.print(f"Dagster UI: http://127.0.0.1:{port}")
        yield


def _insert(console: Console, home: Home) -> dict[str, str]:
    uids = {}
    console.print("\nSix requests, each one SQL INSERT:\n")
    with closing(sqlite3.connect(home.database, timeout=30)) as connection:
        for title, statement in _inserts().items():
            console.print(f"  {statement}", markup=False)
            with connection:
                (uids[title],) = connection.execute(f"{statement} RETURNING uid").fetchone()
    console.print("")
    return uids


def _inserts() -> dict[str, str]:
    """The SQL of each request, by its title."""
    first, second, third = ORGANIZATIONS[:3]
    sendgrid = {"compression": "gzip", "layout": "sendgrid", "list_ids": [list_id(first, 0)]}
    sendgrid |= {"segment_ids": [segment_id(first, 2)], "from_email": "exports@cafe.example.com", "email_locale": "pt"}
    cometly = {"layout": "cometly", "include": ["comet_tokens", "all_emails"]}
    cometly |= {"start_date": "2024-01-01 00:00:00", "end_date": "2024-12-31 23:59:59"}
    in_parts = {"max_file_size_mb": 1, "email_locale": "pt"}
    unknown = {"columns": ["email", "shoe_size"], "requested_by": "ana"}
    return {
        "a list and a segment, as SendGrid": _sql(first, "contacts", "csv", sendgrid, "ana", "joao"),
        "contacts of a year, as Cometly": _sql(third, "contacts", "ndjson", cometly, "mary"),
        "entities, json": _sql(second, "entities", "json", {"email_locale": "es"}, "lucia"),
        "contacts, xlsx": _sql(third, "contacts", "xlsx", {}, "john"),
        "contacts, ndjson in parts of 1 MB": _sql(first, "contacts", "ndjson", in_parts, "ana"),
        UNKNOWN_COLUMN: _sql(first, "contacts", "csv", unknown, "joao"),
    }


def _sql(owner: Organization, dataset: str, format_: str, options: Mapping[str, object], *names: str) -> str:
    columns = {"organization_id": owner.id, "dataset": dataset, "format": format_, **options}
    columns["recipient_emails"] = [f"{name}@example.com" for name in names]
    values = [
        str(value) if isinstance(value, int) else f"'{value if isinstance(value, str) else json.dumps(value)}'"
        for value in columns.values()
    ]
    # Spelled out, to be shown; an application binds its values.
    return f"INSERT INTO export_requests ({', '.join(columns)}) VALUES ({', '.join(values)})"  # noqa: S608


def _watch(console: Console, engine: sa.Engine, uids: dict[str, str]) -> dict[str, RequestState]:
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(bar_width=30),
        TextColumn("{task.percentage:>3.0f}%  {task.fields[phase]:<17}  ETA"),
        TimeRemainingColumn(),
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    with Progress(*columns, console=console) as progress:
        tasks = {title: progress.add_task(title, total=None, phase="queued") for title in uids}
        last: dict[str, str] = {}
        while True:
            with reading(engine) as connection:
                found = {title: read_state(connection, uid) for title, uid in uids.items()}
            states = {title: state for title, state in found.items() if state is not None}
            for title, state in states.items():
                done, total = overall_progress(state)
                progress.update(tasks[title], completed=done, total=total, phase=_phase(state))
                if not console.is_terminal and last.get(title) != (phase := _phase(state)):
                    console.print(f"  {title}: {phase}")
                    last[title] = phase
            if all(state.status in FINISHED for state in states.values()):
                return states
            if time.monotonic() > deadline:
                raise click.ClickException(f"the exports did not end within {TIMEOUT_SECONDS} s; see the logs")
            time.sleep(POLL_SECONDS)


def _phase(state: RequestState) -> str:
    return str(state.stage or state.status) if state.status is RequestStatus.RUNNING else str(state.status)


def _show_results(console: Console, store: Store, home: Home, states: dict[str, RequestState]) -> None:
    for title, state in states.items():
        console.print(f"\n[bold]{title}[/bold]  {state.uid}  {state.status}")
        if state.manifest_key is None:
            console.print(f"  {state.error_code}: {state.message}", markup=False)
            continue
        _show_export(console, store, home, state.manifest_key)
    console.print(f"\nMails, one .eml file each in {home.outbox}:\n")
    for mail in _wait_for_mails(home.outbox):
        console.print(f"  {mail}", markup=False)
    wrong = [title for title, state in states.items() if state.status is RequestStatus.FAILED]
    if wrong != [UNKNOWN_COLUMN]:
        raise click.ClickException(f"unexpected failures: {wrong}; see {home.logs}")


def _show_export(console: Console, store: Store, home: Home, manifest_key: str) -> None:
    manifest = read_manifest(store, manifest_key)
    report = verify(store, manifest_key)
    if not report.sound:
        raise click.ClickException("; ".join(report.problems))
    console.print(f"  {report.rows:,} rows, {report.bytes:,} bytes in {report.files} files, read back and verified")
    for number, file in enumerate(manifest.files):
        link = store.link(describe(file), LINK_LIFETIME).url
        _download(link, file)
        if number < LINKS_SHOWN:
            console.print(f"  {home.objects / BUCKET / PREFIX / file.key}", markup=False)
            console.print(f"  curl -o {file.name} '{link}'", markup=False)
    if len(manifest.files) > LINKS_SHOWN:
        console.print(
            f"  … and {len(manifest.files) - LINKS_SHOWN} more parts in the same directory, downloaded the same way"
        )


def _download(link: str, file: ManifestFile) -> None:
    """Download by a signed link as a recipient's browser does, without credentials, and compare the SHA-256."""
    with urllib.request.urlopen(link, timeout=60) as answer:  # noqa: S310 - our own http link
        digest = hashlib.file_digest(answer, "sha256").hexdigest()
    if digest != file.sha256:
        raise click.ClickException(f"the download of {file.name} differs from the file")


def _wait_for_mails(outbox: Path) -> list[str]:
    """The mails are sent after `completed`: wait for the last one."""
    deadline = time.monotonic() + 60
    while len(files := sorted(outbox.glob("*.eml"))) < EXPECTED_MAILS:
        if time.monotonic() > deadline:
            raise click.ClickException(f"{len(files)} of {EXPECTED_MAILS} mails came; see the logs")
        time.sleep(POLL_SECONDS)
    return [_summary(file) for file in files]


def _summary(file: Path) -> str:
    message = email.message_from_bytes(file.read_bytes(), policy=email.policy.default)
    return f"{file.name}  to {message['To']}: {message['Subject']}"
