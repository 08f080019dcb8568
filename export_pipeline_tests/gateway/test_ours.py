"""Our own API: asking, following, canceling; keys, idempotency, links, health."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from export_pipeline.database.engine import create_engine
from export_pipeline.database.tables import export_requests
from export_pipeline.demo.data.rows import list_id, segment_id
from export_pipeline.gateway import submit
from export_pipeline.gateway.app import JsonLines, build
from export_pipeline.gateway.dialects import native
from export_pipeline.requests.api_keys import digest_of, revoke_key
from export_pipeline.requests.models import RequestTemplate, has_uid, insert_request, load_request
from export_pipeline.requests.validation.rows import date_range_of
from export_pipeline_tests.gateway.clients import OURS, THEIRS, Caller, Gateway

ASKED = {"dataset": "contacts", "format": "csv", "filters": {"id": {"lte": 100}}, "columns": ["id", "email"]}


def test_from_the_request_to_the_file(gateway: Gateway) -> None:
    caller = gateway.caller()
    asked = caller.post("/v1/exports", ASKED)
    assert asked.status_code == 202
    uid = asked.json()["uid"]
    assert asked.headers["Location"] == f"/v1/exports/{uid}"
    assert (asked.json()["status"], asked.json()["progress"]["total"], asked.json()["files"]) == ("queued", None, [])
    (result,) = gateway.work()
    read = caller.get(f"/v1/exports/{uid}").json()
    assert (read["status"], read["error_code"], read["row_count"]) == ("completed", None, result.state.row_count)
    assert read["progress"]["percent"] == 100
    (file,) = read["files"]
    downloaded = gateway.client.get(file["url"])
    assert downloaded.status_code == 200
    assert downloaded.content == result.files[0]
    assert downloaded.headers["Content-Disposition"] == f'attachment; filename="{file["name"]}"'
    rows = list(csv.DictReader(io.StringIO(downloaded.text, newline="")))
    assert [int(row["id"]) for row in rows] == [
        row[0]
        for row in gateway.rows("SELECT id FROM contacts WHERE organization_id = ? AND id <= 100 ORDER BY id", OURS.id)
    ]


def test_the_body_has_every_column_that_may_be_asked_but_the_window() -> None:
    assert set(native.ExportInput.model_fields) == {*RequestTemplate.model_fields, "start_date", "end_date"}


def test_what_the_body_leaves_out_is_as_in_a_row(gateway: Gateway) -> None:
    asked = {"dataset": "contacts", "format": "csv", "recipient_emails": []}
    uid = gateway.caller().post("/v1/exports", asked).json()["uid"]
    with gateway.database.begin() as connection:
        inserted = insert_request(connection, organization_id=OURS.id, **asked)
        ids = connection.execute(
            sa.select(export_requests.c.id)
            .where(sa.or_(has_uid(uid), has_uid(inserted)))
            .order_by(export_requests.c.id)
        ).scalars()
        posted, bare = [load_request(connection, one) for one in list(ids)]
    columns = set(native.ExportInput.model_fields)
    assert posted.model_dump(include=columns) == bare.model_dump(include=columns)


DAY = datetime(2024, 1, 18, 3, tzinfo=UTC)
"""The end of 17 January in the organization's zone."""
MIDNIGHT = datetime(2024, 1, 17, 3, 0, 1, tzinfo=UTC)
ENDS = [
    ("2024-01-17", DAY),
    ("2024-01-17T00:00:00", MIDNIGHT),
    ("2024-01-17 00:00", MIDNIGHT),
    ("2024-01-17T00:00:01", MIDNIGHT + timedelta(seconds=1)),
    ("2024-01-17T23:59:59", DAY),
]


@pytest.mark.parametrize(("given", "before"), ENDS)
def test_a_date_alone_as_the_end_takes_its_day_and_a_time_its_second(
    gateway: Gateway, given: str, before: datetime
) -> None:
    caller, headers = gateway.caller(), {"Idempotency-Key": str(uuid4())}
    asked = {**ASKED, "start_date": "2024-01-16", "end_date": given}
    uid = caller.post("/v1/exports", asked, headers=headers).json()["uid"]
    assert created_before(gateway, uid) == before
    assert caller.post("/v1/exports", asked, headers=headers).json()["uid"] == uid


def test_a_date_alone_in_sql_takes_its_day(gateway: Gateway) -> None:
    row = {"organization_id": OURS.id, "dataset": "contacts", "format": "csv", "recipient_emails": []}
    for end in ("2024-01-17", "2024-01-17 00:00:00"):
        (made,) = gateway.pipeline.database.insert("export_requests", {**row, "start_date": end, "end_date": end})
        ((uid,),) = gateway.rows("SELECT uid FROM export_requests WHERE id = ?", made)
        assert created_before(gateway, str(uid)) == DAY


def created_before(gateway: Gateway, uid: str) -> datetime | None:
    with gateway.database.begin() as connection:
        key = connection.execute(sa.select(export_requests.c.id).where(has_uid(uid))).scalar_one()
        request = load_request(connection, key)
    return date_range_of(request, gateway.services.dataset("contacts"), ZoneInfo(OURS.time_zone))[1]


def test_an_empty_result_may_be_kept_to_oneself(gateway: Gateway) -> None:
    asked = {**ASKED, "filters": {"id": {"lt": 0}}, "recipient_emails": ["ana@example.com"], "empty_result": "skip"}
    assert gateway.caller().post("/v1/exports", asked).status_code == 202
    (result,) = gateway.work()
    assert (result.state.status, result.state.row_count, result.mails) == ("completed", 0, [])
    wrong = gateway.caller().post("/v1/exports", {**asked, "empty_result": "burn"})
    assert (wrong.status_code, wrong.json()["error"]["field"]) == (422, "empty_result")


def test_progress_and_eta_of_a_running_export(gateway: Gateway) -> None:
    caller = gateway.caller()
    uid = caller.post("/v1/exports", ASKED).json()["uid"]
    gateway.pipeline.database.execute(
        "UPDATE export_requests SET status = 'running', stage = 'serialize', rows_done = 50, rows_total = 100, "
        "started_at = created_at WHERE uid = ?",
        [uid],
    )
    read = caller.get(f"/v1/exports/{uid}").json()
    assert (read["progress"]["done"], read["progress"]["total"], read["progress"]["percent"]) == (150, 300, 50.0)
    assert read["progress"]["eta_seconds"] >= 0
    gateway.pipeline.database.execute("UPDATE export_requests SET status = 'failed' WHERE uid = ?", [uid])


def test_cancel_until_it_is_finished(gateway: Gateway) -> None:
    caller = gateway.caller()
    uid = caller.post("/v1/exports", ASKED).json()["uid"]
    canceled = caller.delete(f"/v1/exports/{uid}")
    assert (canceled.status_code, canceled.json()["cancel_requested_at"] is not None) == (202, True)
    gateway.pipeline.database.execute("UPDATE export_requests SET status = 'canceled' WHERE uid = ?", [uid])
    again = caller.delete(f"/v1/exports/{uid}")
    assert (again.status_code, again.json()["error"]["code"]) == (409, "finished")


WRONG: list[tuple[Any, int, str, str | None]] = [
    ({"dataset": "contacts"}, 422, "invalid_request", "format"),
    ({**ASKED, "shoe_size": 43}, 422, "invalid_request", "shoe_size"),
    ({**ASKED, "dataset": "secrets"}, 403, "forbidden", None),
    ({**ASKED, "format": "pdf"}, 422, "unknown_format", "format"),
    ({**ASKED, "filters": {"shoe_size": 43}}, 422, "invalid_filter", "filters"),
    ({**ASKED, "recipient_emails": ["nobody"]}, 422, "invalid_recipient", "recipient_emails"),
    ({**ASKED, "list_ids": [str(uuid4())]}, 422, "unknown_list", "list_ids"),
    ({**ASKED, "segment_ids": [str(uuid4())]}, 422, "unknown_segment", "segment_ids"),
    ({**ASKED, "webhook_url": "http://127.0.0.1/"}, 422, "invalid_webhook", "webhook_url"),
    ({**ASKED, "start_date": "2025-01-01T00:00:00+01:00"}, 422, "invalid_request", "start_date"),
    ({**ASKED, "options": {"time_zone": "localtime"}}, 422, "invalid_option", "options"),
    ({**ASKED, "recipient_emails": ["ana@mail.local"]}, 422, "invalid_recipient", "recipient_emails"),
    ({**ASKED, "max_file_size_mb": 10**30}, 422, "invalid_request", "max_file_size_mb"),
    ({**ASKED, "email_locale": "a\0b"}, 422, "invalid_request", None),
    ([1], 422, "invalid_request", None),
]


@pytest.mark.parametrize(("body", "status", "code", "field"), WRONG)
def test_what_cannot_be_served_is_refused_at_once_and_leaves_no_row(
    one_gateway: Gateway, body: Any, status: int, code: str, field: str | None
) -> None:
    before = one_gateway.rows("SELECT count(*) FROM export_requests")
    answer = one_gateway.caller().post("/v1/exports", body)
    problem = answer.json()["error"]
    assert (answer.status_code, problem["code"], problem["field"]) == (status, code, field)
    assert one_gateway.rows("SELECT count(*) FROM export_requests") == before


RAW = [b"{", b'{"a": NaN}', b'{"a": "\\ud800"}', b'{"a": 1e999}', b"[" * 5000, b'{"a":' * 40 + b"1" + b"}" * 40]


@pytest.mark.parametrize("data", RAW)
def test_a_body_that_is_no_json_or_that_nothing_can_store_is_refused(one_gateway: Gateway, data: bytes) -> None:
    answer = one_gateway.caller().call("POST", "/v1/exports", content=data)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")


def test_a_body_is_bounded(one_gateway: Gateway) -> None:
    answer = one_gateway.caller().call("POST", "/v1/exports", content=b" " * 1_000_001)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_nobody_is_let_in_without_a_valid_key(gateway: Gateway) -> None:
    key = gateway.key()
    revoked = gateway.key()
    with gateway.database.begin() as connection:
        (found,) = gateway.rows("SELECT id FROM api_keys WHERE key_hash = ?", digest_of(revoked))
        assert revoke_key(connection, str(found[0]))
        assert not revoke_key(connection, str(found[0]))
        assert not revoke_key(connection, "no-uuid")
    headers = [{}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"Authorization": f"Basic {key}"}]
    headers += [{"Authorization": f"Bearer {text}"} for text in (key[:-1], f"{key}x", key.upper(), revoked, "\x7f")]
    for one in headers:
        answer = gateway.client.get(f"/v1/exports/{uuid4()}", headers=one)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthenticated"), one
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert gateway.client.get(f"/v1/exports/{uuid4()}", headers={"Authorization": f"Bearer {key}"}).status_code == 404


def test_a_key_is_stored_as_its_hash_alone(gateway: Gateway) -> None:
    key = gateway.key()
    stored = [str(value) for row in gateway.rows("SELECT * FROM api_keys") for value in row]
    assert digest_of(key) in stored
    assert not any(key in value or key.removeprefix("ek_") in value for value in stored)


def test_another_organizations_export_is_as_unknown_as_none(gateway: Gateway) -> None:
    uid = gateway.caller().post("/v1/exports", ASKED).json()["uid"]
    entities = gateway.caller(OURS.id, ("entities:export",))
    for stranger in (gateway.caller(THEIRS.id), entities):
        answers = [
            stranger.call(method, path)
            for known in (uid, str(uuid4()))
            for method, path in (
                ("GET", f"/v1/exports/{known}"),
                ("DELETE", f"/v1/exports/{known}"),
                ("DELETE", f"/v1/exports/{known}/links"),
            )
        ]
        assert {answer.status_code for answer in answers} == {404}
        assert len({answer.text for answer in answers}) == 1


def test_a_key_acts_for_its_member_whose_permission_counts(gateway: Gateway) -> None:
    organization = str(uuid4())
    members = "INSERT INTO organization_members (organization_id, member_id, permissions) VALUES (?, ?, ?)"
    for member, permissions in (("ana", '["contacts:export"]'), ("bob", "[]")):
        gateway.pipeline.database.execute(members, [organization, member, permissions])
    asked = gateway.caller(organization, member_id="ana").post("/v1/exports", ASKED)
    assert asked.status_code == 202
    (row,) = gateway.rows("SELECT requested_by FROM export_requests WHERE uid = ?", asked.json()["uid"])
    assert row == ("ana",)
    refused = gateway.caller(organization, member_id="bob").post("/v1/exports", ASKED)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "permission_denied")


LISTS = (
    "/public-api/v1/contacts?start_date=2025-01-01%2000:00:00&end_date=2025-01-31%2023:59:59",
    "/entities",
    "/v3/marketing/lists",
    "/v3/marketing/segments/2.0",
)


@pytest.mark.parametrize("path", LISTS)
def test_a_member_who_lost_the_permission_lists_nothing(gateway: Gateway, path: str) -> None:
    organization = str(uuid4())
    gateway.pipeline.database.execute(
        "INSERT INTO organization_members (organization_id, member_id, permissions) VALUES (?, ?, ?)",
        [organization, "ana", '["contacts:export", "entities:export"]'],
    )
    caller = gateway.caller(organization, member_id="ana", headers={"X-Organization-ID": organization})
    assert caller.get(path).status_code == 200
    gateway.pipeline.database.execute(
        "UPDATE organization_members SET permissions = '[]' WHERE organization_id = ?", [organization]
    )
    assert caller.get(path).status_code == 403
    assert gateway.caller(organization, headers={"X-Organization-ID": organization}).get(path).status_code == 200


def test_the_same_idempotency_key_makes_one_export(gateway: Gateway) -> None:
    caller, headers = gateway.caller(), {"Idempotency-Key": str(uuid4())}
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: caller.post("/v1/exports", ASKED, headers=headers), range(6)))
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["uid"] for answer in answers}) == 1
    assert sorted(answer.headers.get("Idempotent-Replayed", "") for answer in answers) == ["", *["true"] * 5]
    other = caller.post("/v1/exports", {**ASKED, "format": "json"}, headers=headers)
    assert (other.status_code, "Idempotency-Key" in other.json()["error"]["message"]) == (422, True)
    elsewhere = gateway.caller(THEIRS.id).post("/v1/exports", ASKED, headers=headers)
    assert elsewhere.status_code == 202
    assert elsewhere.json()["uid"] != answers[0].json()["uid"]


def test_the_keys_of_recurring_exports_are_nobody_elses(one_gateway: Gateway) -> None:
    before = one_gateway.rows("SELECT count(*) FROM export_requests")
    headers = {"Idempotency-Key": "recurring:1:2026-03-02T10:00:00+00:00"}
    answer = one_gateway.caller().post("/v1/exports", ASKED, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_request")
    assert "may not begin with recurring:" in answer.json()["error"]["message"]
    assert one_gateway.rows("SELECT count(*) FROM export_requests") == before


NAMED = {**ASKED, "list_ids": [list_id(OURS, 0)], "segment_ids": [segment_id(OURS, 0)]}


def test_no_transaction_is_open_while_the_source_is_asked(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    def looked_up(original: Callable[..., Any]) -> Callable[..., Any]:
        def look_up(*arguments: Any) -> Any:
            pool = gateway.database.pool
            assert isinstance(pool, sa.QueuePool)
            held.append(pool.checkedout())
            return original(*arguments)

        return look_up

    for name in ("check_lists", "find_segments"):
        monkeypatch.setattr(submit, name, looked_up(getattr(submit, name)))
    before = gateway.rows("SELECT count(*) FROM export_requests")[0][0]
    assert gateway.caller().post("/v1/exports", NAMED).status_code == 202
    assert held == [0, 0]
    assert gateway.rows("SELECT count(*) FROM export_requests") == [(before + 1,)]


def test_a_replay_is_answered_without_asking_the_source(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    caller, headers = gateway.caller(), {"Idempotency-Key": str(uuid4())}
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: caller.post("/v1/exports", NAMED, headers=headers), range(4)))
    (uid,) = {answer.json()["uid"] for answer in answers}
    monkeypatch.setattr(submit, "check_lists", None)
    again = caller.post("/v1/exports", NAMED, headers=headers)
    assert (again.status_code, again.json()["uid"], again.headers["Idempotent-Replayed"]) == (202, uid, "true")


def completed(gateway: Gateway, caller: Caller, **asked: Any) -> dict[str, Any]:
    uid = caller.post("/v1/exports", {**ASKED, **asked}).json()["uid"]
    gateway.work()
    read: dict[str, Any] = caller.get(f"/v1/exports/{uid}").json()
    assert read["status"] == "completed"
    return read


def test_a_link_is_counted_until_it_is_revoked_and_says_so_kindly(gateway: Gateway) -> None:
    caller = gateway.caller()
    export = completed(gateway, caller)
    url = export["files"][0]["url"]
    assert [gateway.client.get(url).status_code for _ in range(2)] == [200, 200]
    token = url.rsplit("/", 1)[1]
    counted = gateway.rows("SELECT opened_count FROM export_links WHERE token_hash = ?", digest_of(token))
    assert counted == [(2,)]
    trail = gateway.rows("SELECT actor FROM export_events WHERE request_uid = ? AND kind = 'downloaded'", export["uid"])
    assert trail == [("link",), ("link",)]
    assert caller.delete(f"/v1/exports/{export['uid']}/links").json()["revoked"] >= 1
    gone = gateway.client.get(url)
    assert (gone.status_code, "text/html" in gone.headers["Content-Type"]) == (410, True)
    assert "switched off" in gone.text
    assert gateway.client.get(caller.get(f"/v1/exports/{export['uid']}").json()["files"][0]["url"]).status_code == 200


def test_a_link_ends_with_its_time_and_with_the_files_in_the_language_of_the_mail(gateway: Gateway) -> None:
    caller = gateway.caller()
    for statement in (
        "UPDATE export_links SET expires_at = created_at WHERE request_id = ?",
        "UPDATE export_requests SET status = 'expired' WHERE id = ?",
    ):
        export = completed(gateway, caller, email_locale="pt")
        gateway.pipeline.database.execute(statement, [export["id"]])
        gone = gateway.client.get(export["files"][0]["url"])
        assert gone.status_code == 410
        assert '<html lang="pt">' in gone.text
        assert "Estes arquivos não estão mais aqui" in gone.text


@pytest.mark.parametrize("token", ["x", "%00", "%F0%9F%98%80", "a" * 3000])
def test_a_token_that_nobody_was_given_leads_nowhere(gateway: Gateway, token: str) -> None:
    answer = gateway.client.get(f"/d/{token}", headers={"Accept-Language": "es-MX,es;q=0.9"})
    assert answer.status_code == 404
    assert "Este enlace no lleva a ninguna parte" in answer.text


def test_no_token_and_no_key_is_in_the_log(one_gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    caller = one_gateway.caller()
    export = completed(one_gateway, caller)
    with caplog.at_level(logging.INFO, "export_pipeline.gateway"):
        caller.get(f"/v1/exports/{export['uid']}")
        one_gateway.client.get(export["files"][0]["url"])
    lines = [record.__dict__["facts"] for record in caplog.records if record.name == "export_pipeline.gateway"]
    assert [(line["route"], line["status"]) for line in lines] == [("/v1/exports/{uid}", 200), ("/d/{token}", 200)]
    assert lines[0]["organization"] == OURS.id
    text = json.dumps(lines)
    assert export["files"][0]["url"].rsplit("/", 1)[1] not in text
    assert caller.headers["Authorization"].split()[1] not in text


def test_health_readiness_and_documents(gateway: Gateway) -> None:
    assert gateway.client.get("/healthz").json() == {"status": "ok"}
    assert gateway.client.get("/readyz").json() == {"status": "ok"}
    assert gateway.client.get("/docs").status_code == 200
    document = gateway.client.get("/openapi.json").json()
    assert {"/v1/exports", "/v1/exports/{uid}", "/d/{token}", "/healthz", "/readyz"} <= set(document["paths"])
    assert "HTTPValidationError" not in json.dumps(document)
    unknown = gateway.client.get("/nowhere")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
    assert gateway.client.get("/v1/exports").json()["error"]["code"] == "method_not_allowed"


def test_a_bug_is_told_by_its_type_and_its_places_alone(
    one_gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_arguments: Any) -> None:
        raise RuntimeError("ana@example.com")

    monkeypatch.setattr(native, "visible", broken)
    with caplog.at_level(logging.INFO, "export_pipeline.gateway"):
        answer = one_gateway.caller().get(f"/v1/exports/{uuid4()}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    (crash,) = [record.__dict__["facts"] for record in caplog.records if record.message == "crashed"]
    assert crash["exception"] == "RuntimeError"
    assert any("native.py" in place for place in crash["raised_at"])
    line = JsonLines().format(next(record for record in caplog.records if record.message == "crashed"))
    assert crash["request_id"] == json.loads(line)["request_id"] == answer.headers["X-Request-ID"]
    assert "ana@" not in line + answer.text


def test_without_its_database_it_is_503_and_not_ready_but_alive(one_gateway: Gateway) -> None:
    unreachable = create_engine("postgresql+psycopg://app@127.0.0.1:1/app?connect_timeout=2", connections=1)
    services = replace(one_gateway.services, database=unreachable)
    with TestClient(build(services)) as client:
        answer = client.get(f"/v1/exports/{uuid4()}", headers={"Authorization": "Bearer ek_x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200


def test_a_database_that_was_not_migrated_is_not_ready(one_gateway: Gateway, tmp_path: Path) -> None:
    services = replace(one_gateway.services, database=create_engine(f"sqlite:///{tmp_path}/new.db"))
    with TestClient(build(services)) as client:
        assert "export-pipeline db upgrade" in client.get("/readyz").json()["status"]
