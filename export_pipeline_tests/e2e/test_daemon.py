"""End to end: a plain SQL INSERT, the real daemon and code server, PostgreSQL, S3, SMTP, and a link that is clicked."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.rows import dict_row

from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.stack import Stack, finished, mailed, open_stack, slow_request, worker_of

pytestmark = pytest.mark.timeout(240)
ORGANIZATION = ORGANIZATIONS[0].id


@pytest.fixture(scope="module")
def stack(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    with open_stack(postgres_server, s3_server, tmp_path_factory.mktemp("e2e")) as stack:
        yield stack


def test_four_columns_become_a_file_behind_the_link_in_the_mail(stack: Stack) -> None:
    uid = stack.insert(
        organization_id=ORGANIZATION,
        dataset="contacts",
        format="csv",
        compression="gzip",
        recipient_emails='["ana@example.com"]',
        email_locale="pt",
    )
    row = stack.wait(uid, finished)
    assert (row["status"], row["error_code"], row["message"]) == ("completed", None, None)
    with psycopg.connect(stack.database_url) as connection:
        statement = "SELECT id FROM contacts WHERE organization_id = %s ORDER BY id"
        ids = [found[0] for found in connection.execute(statement, [ORGANIZATION])]
    assert row["rows_total"] == row["row_count"] == len(ids)

    mail = stack.wait_for_mail("ana@example.com")
    assert mail["Subject"].startswith("Sua exportação")
    text = mail.get_body(("plain",)).get_content()
    (link,) = re.findall(r"http://127\.0\.0\.1\S+", text)
    with urllib.request.urlopen(link, timeout=30) as answer:
        rows = list(csv.DictReader(io.StringIO(gzip.decompress(answer.read()).decode(), newline="")))
    assert [int(one["id"]) for one in rows] == ids

    shown = json.loads(stack.command("status", uid, "--json").stdout)
    (run,) = shown["runs"]
    assert (run["status"], run["run_id"]) == ("SUCCESS", row["run_id"])
    assert [stage["step"].split("[")[0] for stage in run["stages"]] == [
        "filter_entities",
        "serialize",
        "upload",
        "publish",
        "notify_recipients",
    ]
    assert all(stage["metadata"]["rows"] == len(ids) for stage in run["stages"][:-1])
    verified = stack.command("verify", uid)
    assert verified.returncode == 0, verified.stderr


def test_a_bad_row_fails_with_its_reason_and_the_next_is_served(stack: Stack) -> None:
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(
            "INSERT INTO organization_members (organization_id, member_id, email, locale, permissions) "
            """VALUES (%s, 'ana', 'requester@example.com', 'es', '["contacts:export"]')""",
            [ORGANIZATION],
        )
    good = {"organization_id": ORGANIZATION, "dataset": "contacts", "format": "xlsx", "recipient_emails": "[]"}
    asked = {"requested_by": "ana", "recipient_emails": '["uninvolved@example.com"]'}
    bad = stack.insert(**{**good, **asked, "filters": '{"shoe_size": 43}'})
    worse = stack.insert(**{**good, "recipient_emails": '{"to": 5}', "dataset": "\x01" * 3000})
    served = stack.insert(**good)
    assert stack.wait(served, finished)["status"] == "completed"
    row = stack.wait(bad, finished)
    assert (row["status"], row["error_code"]) == ("failed", "invalid_filter")
    assert "filters.shoe_size" in row["message"]
    mail = stack.wait_for_mail("requester@example.com")
    assert "filters.shoe_size" in mail.get_body(("plain",)).get_content()
    assert stack.mails("uninvolved@example.com") == []
    row = stack.wait(worse, finished)
    assert (row["status"], row["error_code"]) == ("failed", "invalid_request")
    assert "recipient_emails" in row["message"]


@pytest.mark.slow
def test_a_killed_worker_costs_an_attempt_and_nothing_else(stack: Stack) -> None:
    uid = slow_request(stack, "killed@example.com")
    stack.wait(uid, lambda row: row["stage"] == "filter_entities")
    worker_of(stack).send_signal(signal.SIGKILL)
    row = stack.wait(uid, mailed, seconds=120)
    assert (row["status"], row["attempt"], row["row_count"]) == ("completed", 2, 40)
    stack.wait_for_mail("killed@example.com")
    assert all(f"exports/{uid}/2/" in key for key in stack.objects(uid))


def test_cancel_ends_within_seconds_and_leaves_no_mail_and_no_object(stack: Stack) -> None:
    uid = slow_request(stack, "canceled@example.com")
    stack.wait(uid, lambda row: row["stage"] == "filter_entities")
    began = time.monotonic()
    assert stack.command("cancel", uid).returncode == 0
    row = stack.wait(uid, finished)
    assert row["status"] == "canceled"
    assert time.monotonic() - began < 10
    time.sleep(5)
    assert stack.row(uid)["status"] == "canceled"
    assert stack.mails("canceled@example.com") == []
    assert stack.objects(uid) == []
    assert not (stack.home.directory / "staging" / uid / "1").exists()


@pytest.mark.slow
def test_a_recurring_row_becomes_an_export_and_its_mark_moves(stack: Stack) -> None:
    recipient = "every-day@example.com"
    template = {"dataset": "contacts", "format": "csv", "recipient_emails": [recipient], "columns": ["id"]}
    with psycopg.connect(stack.database_url, row_factory=dict_row) as connection:
        made = connection.execute(
            "INSERT INTO recurring_exports (organization_id, cron, time_zone, window_kind, request, last_fired_for) "
            "VALUES (%s, '0 0 * * *', 'Europe/Madrid', 'since_last_success', %s, now() - interval '3 days') "
            "RETURNING id",
            # Not the one that keeps members: its recipients have to be among them.
            [ORGANIZATIONS[1].id, json.dumps(template)],
        ).fetchone()
    assert made is not None
    stack.wait_for_mail(recipient, 90)
    with psycopg.connect(stack.database_url, row_factory=dict_row) as connection:
        (asked,) = connection.execute(
            "SELECT * FROM export_requests WHERE recurring_export_id = %(id)s", made
        ).fetchall()
        recurring = connection.execute("SELECT * FROM recurring_exports WHERE id = %(id)s", made).fetchone()
    assert recurring is not None
    assert asked["status"] == "completed"
    assert asked["row_count"] > 0
    marks = (asked["scheduled_for"], asked["window_before"], recurring["last_fired_for"], recurring["high_water_mark"])
    assert len(set(marks)) == 1


def test_nothing_personal_and_no_credential_is_in_dagsters_storage(stack: Stack) -> None:
    """Reads every file of the instance after the runs above, failed ones among them."""
    secrets = [
        "@example.com",
        "X-Amz-Signature",
        stack.environment["AWS_SECRET_ACCESS_KEY"],
        stack.database_url,
        "shoe_size=43",
    ]
    password = re.findall(r":([^:@/]+)@", stack.database_url)[0]
    found = []
    for path in Path(stack.home.dagster_home).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found += [(path.name, secret) for secret in [*secrets, password] if secret.encode() in content]
    assert found == []
