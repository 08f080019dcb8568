"""The link in a mail: it mints a fresh URL at the click, on S3 and from a directory, and can be revoked."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from click.testing import CliRunner

from export_pipeline.cli import cli
from export_pipeline_tests.acceptance.pipeline import (
    Database,
    LocalShelf,
    Pipeline,
    Result,
    S3Shelf,
    Shelf,
    open_pipeline,
)
from export_pipeline_tests.gateway.clients import Gateway, open_gateway, settings_of
from export_pipeline_tests.servers.s3 import S3Bucket

PUBLIC_URL = "https://exports.example.org"


@contextmanager
def installation(source: Pipeline, shelf: Shelf, directory: Path) -> Iterator[Gateway]:
    database = Database(source.database.url)
    with (
        open_pipeline(database, shelf, directory, EXPORT_PUBLIC_URL=PUBLIC_URL) as pipeline,
        open_gateway(pipeline) as gateway,
    ):
        yield gateway


def mailed(gateway: Gateway, recipients: int = 1) -> tuple[Result, list[str]]:
    """An export, and the paths of the links in its mails."""
    addresses = [f"reader{at}@example.com" for at in range(recipients)]
    result = gateway.pipeline.export(columns=["id", "name"], recipient_emails=addresses)
    paths = []
    for mail in result.mails:
        body = mail.get_body(("plain",))
        assert body is not None
        (url,) = re.findall(rf"{PUBLIC_URL}/d/[\w-]+", body.get_content())
        paths.append(urlsplit(url).path)
    return result, paths


def test_on_s3_the_click_leads_to_a_fresh_url_of_fifteen_minutes(
    sqlite_installation: Pipeline, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    with installation(sqlite_installation, S3Shelf(s3_bucket), tmp_path) as gateway:
        result, (path,) = mailed(gateway)
        for _ in range(2):
            clicked = gateway.client.get(path)
            assert clicked.status_code == 302
            assert clicked.headers["Referrer-Policy"] == "no-referrer"
            assert parse_qs(urlsplit(clicked.headers["Location"]).query)["X-Amz-Expires"] == ["900"]
            with urllib.request.urlopen(clicked.headers["Location"], timeout=30) as answer:
                assert answer.read() == result.files[0]
        looked = gateway.client.head(path)
        assert (looked.status_code, looked.headers["Content-Length"]) == (200, str(len(result.files[0])))
        assert "Location" not in looked.headers
        counted = gateway.rows("SELECT opened_count FROM export_links WHERE request_id = ?", result.state.id)
        assert counted == [(2,)]


def test_from_a_directory_the_gateway_serves_the_file_itself_until_it_is_revoked(
    sqlite_installation: Pipeline, tmp_path: Path
) -> None:
    with installation(sqlite_installation, LocalShelf(tmp_path / "store"), tmp_path) as gateway:
        result, paths = mailed(gateway, recipients=2)
        assert len(set(paths)) == 2
        for path in paths:
            clicked = gateway.client.get(path)
            assert (clicked.status_code, clicked.content) == (200, result.files[0])
        assert all(address not in path for path in paths for address in ("reader", "@", result.state.uid))
        with settings_of(gateway.pipeline):
            revoked = CliRunner().invoke(cli, ["links", result.state.uid, "--revoke"])
        assert revoked.output == "2 links revoked.\n"
        assert [gateway.client.get(path).status_code for path in paths] == [410, 410]
