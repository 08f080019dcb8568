"""Cometly, Create Contact Export: exactly the documented keys, tokens and addresses, the file's name (contracts, 3)."""

from __future__ import annotations

import gzip
import json
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from click.testing import CliRunner

from export_pipeline.cli import cli
from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline_tests.acceptance.application import CONTACTS, stored_rows
from export_pipeline_tests.acceptance.pipeline import Database, Pipeline, Result, S3Shelf, open_pipeline
from export_pipeline_tests.servers.s3 import S3Bucket

OURS = ORGANIZATIONS[0]
KEYS = ["id", "email", "name", "phone", "location"]
INCLUDED: Sequence[tuple[Any, list[str]]] = [
    (None, []),
    ([], []),
    (["comet_tokens"], ["comet_tokens"]),
    (["all_emails"], ["emails"]),
    (["comet_tokens", "all_emails"], ["comet_tokens", "emails"]),
    (["allEmails", "cometTokens"], ["comet_tokens", "emails"]),
]


def lines(result: Result) -> list[dict[str, Any]]:
    assert (result.state.status, result.state.message) == ("completed", None)
    (file,) = result.files
    return [json.loads(text) for text in gzip.decompress(file).splitlines()]


def values(pipeline: Pipeline, table: str, column: str) -> dict[int, list[str]]:
    """Newest first."""
    found: dict[int, list[str]] = defaultdict(list)
    for key, value in pipeline.database.query(f"SELECT contact_id, {column} FROM {table} ORDER BY id DESC"):
        found[key].append(value)
    return found


@pytest.mark.parametrize(("include", "added"), INCLUDED)
def test_a_line_has_exactly_the_documented_keys_in_order(pipeline: Pipeline, include: Any, added: list[str]) -> None:
    asked = {} if include is None else {"include": include}
    result = pipeline.export(format="ndjson", layout="cometly", **asked)
    tokens, emails = values(pipeline, "contact_tokens", "token"), values(pipeline, "contact_emails", "email")
    expected = []
    for stored in stored_rows(pipeline.database, "contacts", OURS.id):
        row = dict(zip(CONTACTS, stored, strict=True))
        line = {"id": row["id"], "email": row["email"], "name": row["name"], "phone": row["phone_number"]}
        line["location"] = row["location"]
        if "comet_tokens" in added:
            line["comet_tokens"] = tokens[row["id"]][:5]
        if "emails" in added:
            line["emails"] = emails[row["id"]]
        expected.append(line)
    found = lines(result)
    assert found == expected
    assert {tuple(line) for line in found} == {(*KEYS, *added)}


def test_there_are_contacts_with_more_than_five_tokens_and_with_merged_profiles(pipeline: Pipeline) -> None:
    assert max(map(len, values(pipeline, "contact_tokens", "token").values())) > 5
    merged = pipeline.database.query("SELECT count(*) FROM contact_emails WHERE merged_from IS NOT NULL")
    assert merged[0][0] > 0


def test_the_file_is_gzipped_ndjson_named_by_the_uuid(pipeline: Pipeline) -> None:
    result = pipeline.export(format="ndjson", layout="cometly")
    assert result.manifest is not None
    (file,) = result.manifest["files"]
    assert file["name"] == f"{result.state.uid}.ndjson.gz"
    assert result.files[0][:2] == b"\x1f\x8b"


def test_a_link_lives_fifteen_minutes_from_when_it_is_asked_for(
    sqlite_demo: Database, s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_pipeline(sqlite_demo, S3Shelf(s3_bucket), tmp_path) as pipeline:
        result = pipeline.export(format="ndjson", layout="cometly")
        for name, value in pipeline.environment.items():
            monkeypatch.setenv(name, value)
        answer = CliRunner().invoke(cli, ["links", result.state.uid])
        (url,) = answer.output.splitlines()
        query = parse_qs(urlsplit(url).query)
        assert int(query["X-Amz-Expires"][0]) == 15 * 60
        with urllib.request.urlopen(url, timeout=30) as served:
            assert served.read() == result.files[0]


def test_child_lists_stand_in_a_csv_as_json(pipeline: Pipeline) -> None:
    result = pipeline.export(format="csv", columns=["id"], include=["comet_tokens"], filters={"id": {"lte": 50}})
    assert result.state.status == "completed"
    assert result.files[0].startswith(b"id,comet_tokens\n")
