"""SendGrid's dialect: the official package, an Airbyte-like client, and each documented field."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import requests
import sendgrid
from python_http_client.exceptions import NotFoundError, UnauthorizedError

from export_pipeline.demo.data.rows import LIST_NAMES, SEGMENTS, list_id, segment_id
from export_pipeline.source import lookups
from export_pipeline_tests.acceptance.pipeline import Database, Pipeline, S3Shelf, open_pipeline
from export_pipeline_tests.gateway.clients import OURS, THEIRS, Gateway, open_gateway, served
from export_pipeline_tests.servers.s3 import S3Bucket

EXPORTS = "/v3/marketing/contacts/exports"


@pytest.fixture
def on_s3(sqlite_installation: Pipeline, s3_bucket: S3Bucket, tmp_path: Path) -> Iterator[Gateway]:
    """A gateway whose files lie on S3."""
    database = Database(sqlite_installation.database.url)
    with (
        open_pipeline(database, S3Shelf(s3_bucket), tmp_path) as pipeline,
        open_gateway(pipeline) as gateway,
    ):
        yield gateway


def contact_ids(gateway: Gateway, where: str = "1 = 1") -> set[str]:
    statement = f"SELECT contact_id FROM contacts WHERE organization_id = ? AND {where}"
    return {str(row[0]) for row in gateway.rows(statement, OURS.id)}


def test_the_official_package_creates_polls_and_downloads(on_s3: Gateway) -> None:
    with served(on_s3) as url:
        client = sendgrid.SendGridAPIClient(on_s3.key(), host=url).client.marketing.contacts.exports
        asked = client.post(request_body={"list_ids": [list_id(OURS, 0)], "file_type": "csv"})
        assert asked.status_code == 202
        job = json.loads(asked.body)
        assert set(job) == {"_metadata", "id"}
        status = client._(job["id"]).get()
        assert json.loads(status.body)["status"] == "pending"
        on_s3.work()
        status = client._(job["id"]).get()
        export = json.loads(status.body)
        assert (status.status_code, export["status"]) == (200, "ready")
        (link,) = export["urls"]
        rows = list(csv.DictReader(io.StringIO(gzip.decompress(requests.get(link, timeout=30).content).decode())))
        members = "id IN (SELECT contact_id FROM contact_list_members WHERE list_id = '" + list_id(OURS, 0) + "')"
        assert {row["CONTACT_ID"] for row in rows} == contact_ids(on_s3, members)
        assert export["contact_count"] == len(rows) > 0
        listed = json.loads(client.get().body)
        assert listed["result"][-1]["id"] == job["id"]
        assert listed["result"][-1]["lists"] == [{"ID": list_id(OURS, 0), "Name": LIST_NAMES[0]}]
        with pytest.raises(NotFoundError):
            client._(str(uuid4())).get()
        with pytest.raises(UnauthorizedError) as refused:
            sendgrid.SendGridAPIClient("SG.wrong", host=url).client.marketing.contacts.exports.get()
        assert json.loads(refused.value.body) == {"errors": [{"field": None, "message": "authorization required"}]}


def test_an_airbyte_like_client_posts_nothing_polls_and_gunzips(on_s3: Gateway) -> None:
    """source-sendgrid: no body, no Content-Type; files without credentials, path less ``.gzip``, zlib with wbits|32."""
    with served(on_s3) as url:
        headers = {"Authorization": f"Bearer {on_s3.key()}"}
        asked = requests.post(url + EXPORTS, headers=headers, timeout=30)
        assert asked.status_code == 202
        on_s3.work()
        export = requests.get(f"{url}{EXPORTS}/{asked.json()['id']}", headers=headers, timeout=30).json()
        (link,) = export["urls"]
        with requests.get(link, stream=True, timeout=30) as answer:
            assert answer.status_code == 200
            assert answer.headers["Content-Type"] == "application/gzip"
            assert "Content-Encoding" not in answer.headers
            data = b"".join(answer.iter_content(1000))
        assert urlsplit(link).path.endswith(".csv.gzip")
        text = zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(data).decode()
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        assert {row["CONTACT_ID"] for row in rows} == contact_ids(on_s3)


@pytest.mark.parametrize("how", ["body", "query"])
def test_json_is_one_object_a_line_that_a_client_need_not_gunzip(gateway: Gateway, how: str) -> None:
    caller = gateway.caller()
    if how == "body":
        asked = caller.post(EXPORTS, {"file_type": "json", "field_selections": ["*"]})
    else:
        asked = caller.post(f"{EXPORTS}?file_type=json")
    assert asked.status_code == 202, asked.text
    (result,) = gateway.work()
    (link,) = caller.get(f"{EXPORTS}/{asked.json()['id']}").json()["urls"]
    downloaded = gateway.client.get(link)
    assert downloaded.headers["Content-Encoding"] == "gzip"
    assert downloaded.headers["Content-Type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in downloaded.content.splitlines()]
    assert {line["contact_id"] for line in lines} == contact_ids(gateway)
    assert gzip.decompress(result.files[0]) == downloaded.content
    assert result.manifest is not None
    assert result.manifest["files"][0]["name"].endswith(".ndjson")


def test_s3_serves_the_encoding_too(on_s3: Gateway) -> None:
    on_s3.caller().post(EXPORTS, {"file_type": "json"})
    (result,) = on_s3.work()
    assert result.manifest is not None
    (file,) = result.manifest["files"]
    assert (file["content_encoding"], file["media_type"]) == ("gzip", "application/x-ndjson")


def test_the_row_says_what_was_asked(gateway: Gateway) -> None:
    body = {
        "list_ids": [list_id(OURS, 1)],
        "segment_ids": [segment_id(OURS, 0)],
        "file_type": "csv",
        "max_file_size": 7,
        "notifications": {"email": False},
    }
    uid = gateway.caller().post(EXPORTS, body).json()["id"]
    (row,) = gateway.rows(
        "SELECT dataset, format, compression, layout, max_file_size_mb FROM export_requests WHERE uid = ?", uid
    )
    assert row == ("contacts", "csv", "gzip", "sendgrid", 7)
    gateway.work()


WRONG: list[tuple[dict[str, Any], str | None]] = [
    ({"file_type": "xlsx"}, "file_type"),
    ({"list_ids": "all"}, "list_ids"),
    ({"list_ids": ["not-a-uuid"]}, "list_ids"),
    ({"list_ids": [str(uuid4())]}, "list_ids"),
    ({"list_ids": [list_id(THEIRS, 0)]}, "list_ids"),
    ({"segment_ids": [segment_id(THEIRS, 0)]}, "segment_ids"),
    ({"max_file_size": 0}, "max_file_size"),
    ({"max_file_size": 5_000_001}, "max_file_size"),
    ({"max_file_size": 10**40}, "max_file_size"),
    ({"notifications": {"email": True}}, "notifications"),
]


@pytest.mark.parametrize(("body", "field"), WRONG)
def test_what_cannot_be_served_is_400_in_sendgrids_shape(
    one_gateway: Gateway, body: dict[str, Any], field: str | None
) -> None:
    answer = one_gateway.caller().post(EXPORTS, body)
    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["field"]) == (400, field)
    assert error["message"].startswith(str(field))


def test_notifications_go_to_whom_the_key_acts_for(one_gateway: Gateway) -> None:
    organization = str(uuid4())
    one_gateway.pipeline.database.execute(
        "INSERT INTO organization_members (organization_id, member_id, email, permissions) VALUES (?, ?, ?, ?)",
        [organization, "ana", "ana@example.com", '["contacts:export"]'],
    )
    caller = one_gateway.caller(organization, member_id="ana")
    uid = caller.post(EXPORTS, {"notifications": {"email": True}}).json()["id"]
    assert one_gateway.rows("SELECT recipient_emails FROM export_requests WHERE uid = ?", uid)[0][0] == (
        '["ana@example.com"]'
    )
    one_gateway.work()


STATUSES = [
    ("queued", "pending", None),
    ("running", "pending", None),
    ("failed", "failure", "because"),
    ("canceled", "failure", "because"),
    ("expired", "failure", "The files of this export have expired; create a new export."),
]


@pytest.mark.parametrize(("stored", "told", "message"), STATUSES)
def test_a_status_is_one_of_three(one_gateway: Gateway, stored: str, told: str, message: str | None) -> None:
    caller = one_gateway.caller()
    uid = caller.post(EXPORTS).json()["id"]
    one_gateway.pipeline.database.execute(
        "UPDATE export_requests SET status = ?, message = 'because', claimed_at = created_at WHERE uid = ?",
        [stored, uid],
    )
    export = caller.get(f"{EXPORTS}/{uid}").json()
    assert (export["status"], export.get("message")) == (told, message)
    assert "urls" not in export
    assert {"id", "status", "created_at", "updated_at", "expires_at", "_metadata"} <= set(export)
    one_gateway.pipeline.database.execute("UPDATE export_requests SET status = 'failed' WHERE uid = ?", [uid])


def test_another_organizations_export_is_404(gateway: Gateway) -> None:
    uid = gateway.caller().post(EXPORTS).json()["id"]
    stranger = gateway.caller(THEIRS.id)
    for known in (uid, str(uuid4()), "x", "%00", "1"):
        answer = stranger.get(f"{EXPORTS}/{known}")
        assert (answer.status_code, answer.json()) == (
            404,
            {"errors": [{"field": None, "message": "resource not found"}]},
        )
    assert uid not in [one["id"] for one in stranger.get(EXPORTS).json()["result"]]
    gateway.work()


def test_a_key_without_the_scope_and_a_subuser_are_403(one_gateway: Gateway) -> None:
    entities = one_gateway.caller(OURS.id, ("entities:export",))
    subuser = one_gateway.caller(headers={"On-Behalf-Of": "subuser"})
    for caller in (entities, subuser):
        answer = caller.post(EXPORTS)
        assert (answer.status_code, answer.json()["errors"][0]["message"]) == (403, "access forbidden")


def test_lists_come_in_pages_with_the_url_of_the_next(gateway: Gateway) -> None:
    caller = gateway.caller()
    path: str | None = "/v3/marketing/lists?page_size=2"
    found: dict[str, tuple[str, int]] = {}
    pages = 0
    while path is not None:
        page = caller.get(path).json()
        found |= {one["id"]: (one["name"], one["contact_count"]) for one in page["result"]}
        path, pages = page["_metadata"].get("next"), pages + 1
    counts = dict(
        gateway.rows(
            "SELECT list_id, count(*) FROM contact_list_members WHERE organization_id = ? GROUP BY list_id", OURS.id
        )
    )
    stored = {str(key): number for key, number in counts.items()}
    assert found == {list_id(OURS, at): (name, stored[list_id(OURS, at)]) for at, name in enumerate(LIST_NAMES)}
    assert pages == 2
    wrong = caller.get("/v3/marketing/lists?page_token=nowhere")
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (400, "page_token")
    assert caller.get("/v3/marketing/lists?page_size=1001").status_code == 400


def test_segments_say_how_many_contacts_they_hold_and_whether_they_can_be_used(gateway: Gateway) -> None:
    broken = str(uuid4())
    gateway.pipeline.database.execute(
        "INSERT INTO contact_segments (id, organization_id, name, filter, created_at) VALUES (?, ?, ?, ?, ?)",
        [broken, OURS.id, "Broken", '{"shoe_size": 43}', "2024-01-01 00:00:00.000000"],
    )
    results = gateway.caller().get("/v3/marketing/segments/2.0").json()["results"]
    gateway.pipeline.database.execute("DELETE FROM contact_segments WHERE id = ?", [broken])
    by_id = {one["id"]: one for one in results}
    assert set(by_id) == {broken, *(segment_id(OURS, at) for at in range(len(SEGMENTS)))}
    at_example = by_id[segment_id(OURS, 2)]
    addresses = gateway.rows("SELECT email FROM contacts WHERE organization_id = ?", OURS.id)
    expected = sum("@example.com" in (email or "") for (email,) in addresses)
    assert (at_example["name"], at_example["contacts_count"]) == ("At example.com", expected)
    assert at_example["status"] == {"query_validation": "VALID", "error_message": ""}
    assert by_id[broken]["status"]["query_validation"] == "INVALID"
    assert "shoe_size" in by_id[broken]["status"]["error_message"]


def segments(gateway: Gateway) -> list[dict[str, Any]]:
    answer = gateway.caller().get("/v3/marketing/segments/2.0")
    assert answer.status_code == 200
    found: list[dict[str, Any]] = answer.json()["results"]
    assert len(found) == len(SEGMENTS)
    assert {one["status"]["query_validation"] for one in found} == {"VALID"}
    return found


def test_segments_are_not_counted_once_the_time_is_over(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "_COUNTING_SECONDS", 0.0)
    assert {one["contacts_count"] for one in segments(gateway)} == {None}


def test_a_count_that_takes_too_long_is_broken_off(
    postgresql_gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "_COUNTING_SECONDS", 0.5)
    with postgresql_gateway.database.begin() as holder:
        holder.exec_driver_sql("LOCK TABLE contacts IN ACCESS EXCLUSIVE MODE")
        assert {one["contacts_count"] for one in segments(postgresql_gateway)} == {None}


def test_every_answer_says_the_rate_and_too_many_is_429(sqlite_installation: Pipeline) -> None:
    with open_gateway(sqlite_installation, EXPORT_RATE_LIMIT_PER_MINUTE="3") as gateway:
        caller = gateway.caller(str(uuid4()))
        answers = [caller.get(f"{EXPORTS}/{uuid4()}") for _ in range(5)]
    assert {answer.status_code for answer in answers[-2:]} <= {404, 429}
    assert [answer.headers["X-RateLimit-Limit"] for answer in answers] == ["3"] * 5
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused
    assert refused[0].json() == {"errors": [{"field": None, "message": "too many requests"}]}
    assert int(refused[0].headers["X-RateLimit-Reset"]) > 1_700_000_000
    assert refused[0].headers["X-RateLimit-Remaining"] == "0"


def test_its_documents(one_gateway: Gateway) -> None:
    assert one_gateway.client.get("/sendgrid/docs").status_code == 200
    assert EXPORTS in one_gateway.client.get("/sendgrid/openapi.json").json()["paths"]
