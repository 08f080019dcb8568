"""gu1's dialect: each documented field, sentence and status."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any
from uuid import uuid4

import pytest

from export_pipeline_tests.acceptance.application import ENTITIES, stored_rows
from export_pipeline_tests.gateway.clients import OURS, THEIRS, Caller, Gateway

JOBS = "/entities/export/jobs"
ASKED = {"recipientEmails": ["ana@example.com"], "format": "json"}


def caller_of(gateway: Gateway, organization: str = OURS.id, **facts: Any) -> Caller:
    return gateway.caller(organization, ("entities:export",), headers={"X-Organization-ID": organization}, **facts)


def test_a_job_is_queued_followed_mailed_and_downloaded(gateway: Gateway) -> None:
    caller = caller_of(gateway)
    asked = caller.post(
        JOBS, {**ASKED, "filters": {"type": "person", "taxId": None}, "columns": ["id", "tax_id"], "emailLocale": "es"}
    )
    assert asked.status_code == 202
    assert set(asked.json()) == {"jobId", "message"}
    path = f"{JOBS}/{asked.json()['jobId']}"
    queued = caller.get(path).json()
    assert (queued["success"], queued["job"]["status"], queued["job"]["format"]) == (True, "queued", "json")
    not_yet = caller.get(f"{path}/download")
    assert (not_yet.status_code, not_yet.json()["success"]) == (404, False)
    (result,) = gateway.work()
    assert [mail["To"] for mail in result.mails] == ["ana@example.com"]
    assert "exportación" in result.mails[0]["Subject"]
    job = caller.get(path).json()["job"]
    assert (job["status"], job["error"], job["progress"]) == ("completed", None, 100.0)
    assert job["totalItems"] == job["processedItems"] == result.state.row_count
    assert datetime.fromisoformat(job["createdAt"]) <= datetime.fromisoformat(job["completedAt"])
    found = caller.get(f"{path}/download").json()["download"]
    assert (found["jobId"], found["fileName"], found["sizeBytes"]) == (
        job["jobId"],
        found["files"][0]["fileName"],
        len(result.files[0]),
    )
    rows = gateway.client.get(found["url"]).json()
    assert rows == json.loads(result.files[0])
    expected = [
        dict(zip(ENTITIES, r, strict=True)) for r in stored_rows(gateway.pipeline.database, "entities", OURS.id)
    ]
    assert rows == [
        {"id": row["id"], "tax_id": None} for row in expected if row["type"] == "person" and row["tax_id"] is None
    ]
    gateway.pipeline.database.execute("UPDATE export_requests SET status = 'expired' WHERE uid = ?", [job["jobId"]])
    gone = caller.get(f"{path}/download")
    assert (gone.status_code, "expired" in gone.json()["error"]) == (404, True)
    assert caller.get(path).json()["job"]["status"] == "completed"


@pytest.mark.parametrize("stored", ["failed", "canceled"])
def test_what_failed_says_why(one_gateway: Gateway, stored: str) -> None:
    caller = caller_of(one_gateway)
    uid = caller.post(JOBS, ASKED).json()["jobId"]
    one_gateway.pipeline.database.execute(
        "UPDATE export_requests SET status = ?, message = 'because', error_code = 'internal_error' WHERE uid = ?",
        [stored, uid],
    )
    job = caller.get(f"{JOBS}/{uid}").json()["job"]
    assert (job["status"], job["error"], job["errorCode"]) == ("failed", "because", "internal_error")


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"format": "csv"}, "recipientEmails: ", "bad_request"),
    ({**ASKED, "recipientEmails": []}, "recipientEmails: ", "bad_request"),
    ({**ASKED, "format": "parquet"}, "format: ", "bad_request"),
    ({**ASKED, "recipientEmails": ["nobody"]}, "recipientEmails[0]: ", "invalid_recipient"),
    (
        {**ASKED, "recipientEmails": [f"a{at}@example.com" for at in range(27)]},
        "recipientEmails: 27 different addresses; at most 26",
        "too_many_recipients",
    ),
    ({**ASKED, "columns": ["shoe_size"]}, "columns: ", "unknown_column"),
    ({**ASKED, "filters": {"type": "alien"}}, "filters.type: ", "invalid_filter"),
    (
        {**ASKED, "fromEmail": "a@b.example", "fromSenderId": str(uuid4())},
        "Send only one of fromSenderId or fromEmail, not both.",
        "sender_conflict",
    ),
    (
        {**ASKED, "fromEmail": "example@my-domain.com"},
        (
            'Domain "my-domain.com" is not registered in Gu1. Add and verify it under Settings → Email → Domains '
            'before using sender "example@my-domain.com".'
        ),
        "sender_domain_unknown",
    ),
    ({**ASKED, "fromSenderId": "no-uuid"}, "fromSenderId not found", "sender_unknown"),
    ({**ASKED, "fromEmail": "nobody"}, "fromEmail: is not an e-mail address", "invalid_sender"),
]


@pytest.mark.parametrize(("body", "error", "code"), WRONG)
def test_a_mistake_is_400_with_the_documented_sentence(
    one_gateway: Gateway, body: dict[str, Any], error: str, code: str
) -> None:
    answer = caller_of(one_gateway).post(JOBS, body)
    assert (answer.status_code, set(answer.json())) == (400, {"success", "error", "code"})
    assert (answer.json()["success"], answer.json()["code"]) == (False, code)
    assert answer.json()["error"].startswith(error)
    assert not re.search(r"NULL|\b(recipient_emails|from_email|from_sender_id|email_locale)\b", answer.json()["error"])


def test_mail_that_cannot_be_paid_or_is_switched_off_is_400_and_leaves_no_row(gateway: Gateway) -> None:
    organization = str(uuid4())
    insert = "INSERT INTO organizations (id, email_enabled, email_balance) VALUES (?, ?, ?)"
    gateway.pipeline.database.execute(insert, [organization, True, 1])
    caller = caller_of(gateway, organization)
    answer = caller.post(JOBS, {**ASKED, "recipientEmails": ["a@example.com", "b@example.com"]})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("Insufficient balance for this send (cost 2 credits). Add tokens")
    gateway.pipeline.database.execute("UPDATE organizations SET email_enabled = ? WHERE id = ?", [False, organization])
    answer = caller.post(JOBS, ASKED)
    assert answer.json()["error"].startswith("Email integration is not active. Enable Email (global_sender_email)")
    counted = gateway.rows("SELECT count(*) FROM export_requests WHERE organization_id = ?", organization)
    assert counted == [(0,)]


def test_who_may_call_for_which_organization(one_gateway: Gateway) -> None:
    key = {"Authorization": f"Bearer {one_gateway.key(scopes=('entities:export',))}"}
    contacts = {"Authorization": f"Bearer {one_gateway.key(scopes=('contacts:export',))}"}
    organization = {"X-Organization-ID": OURS.id}
    for headers, status in (
        ({}, 401),
        (organization, 401),
        (key, 400),
        ({**key, "X-Organization-ID": THEIRS.id}, 403),
        ({**contacts, **organization}, 403),
        ({**key, "X-Organization-ID": OURS.id.upper()}, 202),
        ({**key, **organization}, 202),
    ):
        answer = one_gateway.client.post(JOBS, json=ASKED, headers=headers)
        assert answer.status_code == status, headers
        assert ("jobId" in answer.json()) == (status == 202)
        assert status == 202 or answer.json()["success"] is False


def test_another_organizations_job_is_404(gateway: Gateway) -> None:
    uid = caller_of(gateway).post(JOBS, ASKED).json()["jobId"]
    stranger = caller_of(gateway, THEIRS.id)
    for path in (f"{JOBS}/{uid}", f"{JOBS}/{uid}/download", f"{JOBS}/{uuid4()}", f"{JOBS}/x"):
        answer = stranger.get(path)
        assert (answer.status_code, answer.json()["error"]) == (404, "Not found")


def test_entities_are_listed_by_the_documented_filters(gateway: Gateway) -> None:
    caller = caller_of(gateway)
    rows = [
        dict(zip(ENTITIES, row, strict=True)) for row in stored_rows(gateway.pipeline.database, "entities", OURS.id)
    ]
    everything = caller.get("/entities").json()["entities"]
    assert [one["id"] for one in everything] == [row["id"] for row in rows][:100]
    assert set(everything[0]) >= {"id", "externalId", "organizationId", "type", "taxId", "countryCode", "riskScore"}
    assert {one["organizationId"] for one in everything} == {OURS.id}
    sample = next(row for row in rows if row["tax_id"] and row["external_id"] and row["country_code"])
    filters = {
        "type": sample["type"],
        "country": sample["country_code"],
        "taxId": sample["tax_id"],
        "externalId": sample["external_id"],
    }
    columns = ("type", "country_code", "tax_id", "external_id")
    for (name, value), column in zip(filters.items(), columns, strict=True):
        found = caller.call("GET", "/entities", params={name: value}).json()["entities"]
        assert [one["id"] for one in found] == [row["id"] for row in rows if row[column] == value][:100]
    assert sample["id"] in [one["id"] for one in caller.call("GET", "/entities", params=filters).json()["entities"]]
    theirs = caller_of(gateway, THEIRS.id).get("/entities").json()["entities"]
    assert not {one["id"] for one in theirs} & {row["id"] for row in rows}


@pytest.mark.parametrize(
    "query", ["limit=5", "type=alien", "type=person&type=company", "organizationId=x", "taxId=%00"]
)
def test_a_filter_that_would_be_ignored_is_refused(one_gateway: Gateway, query: str) -> None:
    answer = caller_of(one_gateway).get(f"/entities?{query}")
    assert (answer.status_code, answer.json()["success"]) == (400, False)


def test_a_sandbox_key_has_its_hundred_an_hour(gateway: Gateway) -> None:
    caller = caller_of(gateway, str(uuid4()), requests_per_hour=3)
    answers = [caller.get(f"{JOBS}/{uuid4()}") for _ in range(8)]
    assert {answer.status_code for answer in answers[:3]} == {404}
    refused = answers[-1]
    assert (refused.status_code, refused.json()["success"]) == (429, False)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.headers["X-RateLimit-Limit"] == "3"


def test_its_documents(one_gateway: Gateway) -> None:
    assert one_gateway.client.get("/gu1/docs").status_code == 200
    paths = one_gateway.client.get("/gu1/openapi.json").json()["paths"]
    assert {"/entities", JOBS, f"{JOBS}/{{jobId}}", f"{JOBS}/{{jobId}}/download"} == set(paths)
