"""The real thing: a gateway process, the daemon and its code server, PostgreSQL, S3, and clients that exist."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import sendgrid

from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline_tests.gateway.load import running_gateway
from export_pipeline_tests.servers.hooks import HookSink, serve_hooks
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.stack import Stack, open_stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
EXPORTS = "/v3/marketing/contacts/exports"


@dataclass(frozen=True)
class Running:
    """An installation with a gateway."""

    stack: Stack
    url: str
    key: str
    hooks: HookSink

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@pytest.fixture(scope="module")
def running(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("gateway-e2e")
    settings = {"EXPORT_WEBHOOK_ALLOW_INSECURE": "true", "EXPORT_PUBLIC_URL": "http://exports.example.org"}
    with (
        serve_hooks() as hooks,
        open_stack(postgres_server, s3_server, directory, **settings) as stack,
        running_gateway(directory, stack.environment) as (port, _),
    ):
        command = ["api-key", "create", "--organization", ORGANIZATIONS[0].id, "--scope", "contacts:export"]
        made = stack.command(*command)
        assert made.returncode == 0, made.stderr
        yield Running(stack, f"http://127.0.0.1:{port}", made.stdout.split()[-1], hooks)


def until(ask: Callable[[], Any], good: Callable[[Any], bool], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not good(found := ask()):
        assert time.monotonic() < deadline, found
        time.sleep(0.5)
    return found


def rows_of(data: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


def test_the_official_package_against_the_running_pipeline(running: Running) -> None:
    client = sendgrid.SendGridAPIClient(running.key, host=running.url).client.marketing.contacts.exports
    job = json.loads(client.post(request_body={"file_type": "csv"}).body)["id"]
    export = until(lambda: json.loads(client._(job).get().body), lambda found: found["status"] != "pending")
    assert export["status"] == "ready", export
    (link,) = export["urls"]
    rows = rows_of(gzip.decompress(requests.get(link, timeout=30).content))
    assert len(rows) == export["contact_count"] == running.stack.row(job)["row_count"] > 0


def test_an_airbyte_like_client_against_the_running_pipeline(running: Running) -> None:
    job = requests.post(running.url + EXPORTS, headers=running.headers, timeout=30).json()["id"]
    path = f"{running.url}{EXPORTS}/{job}"
    export = until(
        lambda: requests.get(path, headers=running.headers, timeout=30).json(),
        lambda found: found["status"] != "pending",
    )
    (link,) = export["urls"]
    assert urlsplit(link).path.endswith(".csv.gzip")
    with requests.get(link, stream=True, timeout=30) as answer:
        data = b"".join(answer.iter_content(1000))
    assert len(rows_of(zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data))) == export["contact_count"]


def test_json_needs_no_gunzip_where_the_store_keeps_the_encoding(running: Running) -> None:
    asked = requests.post(f"{running.url}{EXPORTS}?file_type=json", headers=running.headers, timeout=30)
    path = f"{running.url}{EXPORTS}/{asked.json()['id']}"
    export = until(
        lambda: requests.get(path, headers=running.headers, timeout=30).json(),
        lambda found: found["status"] != "pending",
    )
    (link,) = export["urls"]
    answer = requests.get(link, timeout=30)
    assert answer.headers["Content-Encoding"] == "gzip"
    assert len([json.loads(line) for line in answer.content.splitlines()]) == export["contact_count"]


def test_a_mail_has_a_sealed_link_and_the_webhook_is_called(running: Running) -> None:
    asked = {
        "dataset": "contacts",
        "format": "csv",
        "columns": ["id"],
        "recipient_emails": ["sealed@example.com"],
        "webhook_url": running.hooks.url,
    }
    uid = requests.post(f"{running.url}/v1/exports", json=asked, headers=running.headers, timeout=30).json()["uid"]
    mail = until(lambda: running.stack.mails("sealed@example.com"), bool)[0]
    (path,) = re.findall(r"http://exports\.example\.org(/d/[\w-]+)", mail.get_body(("plain",)).get_content())
    rows = rows_of(requests.get(running.url + path, timeout=30).content)
    assert len(rows) == running.stack.row(uid)["row_count"]
    (hook,) = until(lambda: list(running.hooks.received), bool, seconds=60)
    assert (hook.document["event"], hook.document["export"]["uid"]) == ("export.completed", uid)
