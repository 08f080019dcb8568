"""gu1, bulk entity export by e-mail: filters, columns, recipients, senders, permission and billing (contracts, 1)."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest

from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline_tests.acceptance.application import ENTITIES, stored_rows
from export_pipeline_tests.acceptance.pipeline import Pipeline, Result

OURS = ORGANIZATIONS[3]
SENDER = "7d0cbb0e-6f0a-4f4e-9a53-0f1d2c3b4a51"
STRANGERS_SENDER = "7d0cbb0e-6f0a-4f4e-9a53-0f1d2c3b4a52"
Row = Mapping[str, Any]


@pytest.fixture
def house(pipeline: Pipeline) -> Iterator[Pipeline]:
    """An organization with members, domains, senders and a balance, as its application would have filled them."""
    database = pipeline.database
    database.insert_only("organization_members", {"organization_id": OURS.id, "member_id": "lucia", "locale": "es",
                         "email": "lucia@quijote.example", "permissions": ["entities:export"]})  # fmt: skip
    database.insert_only("organization_members", {"organization_id": OURS.id, "member_id": "pedro",
                         "email": "pedro@quijote.example", "permissions": ["contacts:export"]})  # fmt: skip
    verified = {"organization_id": OURS.id, "domain": "quijote.example", "verified_at": "2024-01-01 00:00:00"}
    database.insert_only("organization_email_domains", verified)
    database.insert_only("organization_email_domains", {"organization_id": OURS.id, "domain": "new.example"})
    sender = {"id": SENDER, "organization_id": OURS.id, "email": "hola@quijote.example", "name": "Librería"}
    database.insert_only("organization_email_senders", sender)
    stranger = {"id": STRANGERS_SENDER, "organization_id": ORGANIZATIONS[4].id, "email": "tea@house.example"}
    database.insert_only("organization_email_senders", stranger)
    yield pipeline
    for table in ("organization_members", "organization_email_domains", "organization_email_senders"):
        database.execute(f"DELETE FROM {table}")
    database.execute("DELETE FROM email_charges")
    _set(pipeline, email_enabled=True, email_balance=None)


def _set(pipeline: Pipeline, **values: Any) -> None:
    assignments = ", ".join(f"{name} = ?" for name in values)
    pipeline.database.execute(f"UPDATE organizations SET {assignments} WHERE id = ?", [*values.values(), OURS.id])


def export(pipeline: Pipeline, **row: Any) -> Result:
    return pipeline.export(**{"organization_id": OURS.id, "dataset": "entities", "format": "json", **row})


def entities(pipeline: Pipeline) -> list[Row]:
    return [dict(zip(ENTITIES, row, strict=True)) for row in stored_rows(pipeline.database, "entities", OURS.id)]


def balance(pipeline: Pipeline) -> Any:
    return pipeline.database.query("SELECT email_balance FROM organizations WHERE id = ?", [OURS.id])[0][0]


def charges(pipeline: Pipeline, uid: str) -> dict[str, int]:
    statement = "SELECT status, count(*) FROM email_charges WHERE request_uid = ? GROUP BY status"
    return dict(pipeline.database.query(statement, [uid]))


LIST_FILTERS: Sequence[tuple[Any, Callable[[Row], bool]]] = [
    ({"type": "company"}, lambda row: row["type"] == "company"),
    ({"country": "ES"}, lambda row: row["country_code"] == "ES"),
    ({"countryCode": ["ES", "BR"]}, lambda row: row["country_code"] in ("ES", "BR")),
    ({"taxId": "no such"}, lambda row: False),
    (
        {"type": "person", "riskScore": {"gte": 70}},
        lambda row: row["type"] == "person" and (row["risk_score"] or -1) >= 70,
    ),
    ({"is_client": True, "deletedAt": None}, lambda row: row["is_client"] and row["deleted_at"] is None),
]


@pytest.mark.parametrize(("filters", "predicate"), LIST_FILTERS)
def test_filters_are_those_of_the_list_in_either_spelling(
    pipeline: Pipeline, filters: Any, predicate: Callable[[Row], bool]
) -> None:
    result = export(pipeline, columns=["id"], filters=filters)
    assert (result.state.status, result.state.message) == ("completed", None)
    found = [row["id"] for row in json.loads(result.files[0])]
    assert found == [row["id"] for row in entities(pipeline) if predicate(row)]


def test_tax_id_and_external_id_find_the_one_entity(pipeline: Pipeline) -> None:
    row = next(row for row in entities(pipeline) if row["tax_id"] and row["external_id"])
    result = export(pipeline, columns=["id"], filters={"taxId": row["tax_id"], "externalId": row["external_id"]})
    assert row["id"] in [found["id"] for found in json.loads(result.files[0])]


@pytest.mark.parametrize("columns", [None, []])
def test_no_columns_are_all_allowed_columns_in_snake_case(pipeline: Pipeline, columns: Any) -> None:
    asked = {} if columns is None else {"columns": columns}
    result = export(pipeline, format="csv", **asked)
    assert next(csv.reader(io.StringIO(result.files[0].decode()))) == list(ENTITIES)


def test_columns_keep_the_order_they_were_asked_in(pipeline: Pipeline) -> None:
    result = export(pipeline, format="csv", columns=["tax_id", "id", "name"])
    assert result.files[0].startswith(b"tax_id,id,name\n")


def test_recipients_are_each_mailed_once_and_the_requester_is_not_added(house: Pipeline) -> None:
    result = export(
        house,
        requested_by="lucia",
        recipient_emails=[" ana@Example.com", "ana@example.com", "Ana@example.com", "joão@example.com"],
    )
    assert result.state.status == "completed"
    to = [str(mail["To"]) for mail in result.mails]
    assert to == ["ana@example.com", "joão@example.com"]
    assert not any("lucia" in address for address in to)


@pytest.mark.parametrize(
    ("row", "sender"),
    [
        ({"from_email": "informes@quijote.example"}, "informes@quijote.example"),
        ({"from_email": "Anything.At+All@QUIJOTE.example"}, "Anything.At+All@quijote.example"),
        ({"from_sender_id": SENDER}, "Librería <hola@quijote.example>"),
        ({}, "exports@localhost.localdomain"),
    ],
)
def test_the_sender_is_the_one_asked_for(house: Pipeline, row: Mapping[str, Any], sender: str) -> None:
    result = export(house, **row)
    assert [str(mail["From"]) for mail in result.mails] == [sender]


REFUSALS: Sequence[tuple[Mapping[str, Any], str, str]] = [
    (
        {"from_email": "a@unknown.example"},
        "sender_domain_unknown",
        (
            'Domain "unknown.example" is not registered in Gu1. Add and verify it under Settings → Email → Domains '
            'before using sender "a@unknown.example".'
        ),
    ),
    (
        {"from_email": "a@new.example"},
        "sender_domain_unverified",
        (
            'Domain "new.example" is not verified yet. Complete DNS records and click Verify under Settings → Email → '
            "Domains."
        ),
    ),
    (
        {"from_email": "a@sub.quijote.example"},
        "sender_domain_unknown",
        'Domain "sub.quijote.example" is not registered',
    ),
    (
        {"from_email": "a@quijote.example", "from_sender_id": SENDER},
        "sender_conflict",
        "Send only one of fromSenderId or fromEmail, not both.",
    ),
    ({"from_sender_id": STRANGERS_SENDER}, "sender_unknown", "fromSe"),
    ({"from_sender_id": "7"}, "sender_unknown", "fromSe"),
    ({"requested_by": "pedro"}, "permission_denied", "requested_by: "),
    ({"requested_by": "nobody"}, "permission_denied", "requested_by: "),
]


@pytest.mark.parametrize(("row", "code", "sentence"), REFUSALS)
def test_a_refusal_has_its_code_and_the_documented_sentence(
    house: Pipeline, row: Mapping[str, Any], code: str, sentence: str
) -> None:
    result = export(house, **row)
    assert (result.state.status, result.state.error_code) == ("failed", code)
    assert (result.state.message or "").startswith(sentence)
    assert result.retries == 0
    assert not [mail for mail in result.mails if "ana@example.com" in str(mail["To"])]


def test_with_the_email_integration_off_nobody_can_be_mailed_but_files_can_be_made(house: Pipeline) -> None:
    _set(house, email_enabled=False)
    refused = export(house)
    assert (refused.state.status, refused.state.error_code) == ("failed", "email_integration_off")
    assert (refused.state.message or "").startswith(
        "Email integration is not active. Enable Email (global_sender_email) in Applications (Marketplace) for this "
        "organization."
    )
    assert export(house, notify_email=False).state.status == "completed"


def test_every_recipient_costs_one_execution_and_all_are_paid_before_anything_starts(house: Pipeline) -> None:
    _set(house, email_balance=2)
    two = export(house, recipient_emails=["a@example.com", "b@example.com", "B@EXAMPLE.com", "a@EXAMPLE.com"])
    assert two.state.status == "completed"
    assert (balance(house), charges(house, two.state.uid)) == (0, {"charged": 2})
    refused = export(house, recipient_emails=["a@example.com"])
    assert (refused.state.status, refused.state.error_code) == ("failed", "insufficient_balance")
    assert (refused.state.message or "").startswith("Insufficient balance for this send (cost 1 credits). Add tokens")
    assert refused.state.rows_total is None
    assert (balance(house), charges(house, refused.state.uid)) == (0, {})


def test_a_failed_export_gives_back_what_it_had_reserved(house: Pipeline) -> None:
    _set(house, email_balance=5)
    refused = export(house, dataset="contacts", list_ids=["00000000-0000-4000-8000-000000000000"])
    assert refused.state.error_code == "unknown_list"
    assert balance(house) == 5
    assert charges(house, refused.state.uid) in ({}, {"released": 1})


def test_the_failure_is_told_to_the_requester_in_their_language_and_to_nobody_else(house: Pipeline) -> None:
    result = export(house, requested_by="lucia", columns=["shoe_size"], recipient_emails=["a@example.com"])
    assert result.state.error_code == "unknown_column"
    (mail,) = result.mails
    assert str(mail["To"]) == "lucia@quijote.example"
    body = mail.get_body(("plain",))
    assert body is not None
    assert "shoe_size" in body.get_content()
    assert "exportaci" in str(mail["Subject"]).lower()
    assert "a@example.com" not in mail.as_string()


@pytest.mark.parametrize("locale", ["en", "es", "pt", "fr", None])
def test_an_empty_result_is_a_valid_empty_file_and_a_mail_that_says_so(pipeline: Pipeline, locale: str | None) -> None:
    result = export(pipeline, format="csv", filters={"taxId": "no such"}, email_locale=locale)
    assert (result.state.status, result.state.row_count) == ("completed", 0)
    assert result.files[0].decode().count("\n") == 1
    (mail,) = result.mails
    body = mail.get_body(("plain",))
    assert body is not None
    said = {"es": "no contiene filas", "pt": "não contém linhas"}.get(locale or "en", "holds no rows")
    assert said in " ".join(body.get_content().split())
