"""One organization never sees another's: rows, lists, segments, fields, requests, files; and no key can be guessed.

Every text of the other organization holds a mark, its children and members point at our rows where a careless
application lets them, and whatever we are given, files, manifests and answers, is searched for the mark and its ids.
"""

from __future__ import annotations

import gzip
import hmac
import json
import math
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export_pipeline.demo.data.rows import list_id, segment_id
from export_pipeline.recurring import unsubscribe
from export_pipeline.requests import api_keys
from export_pipeline.requests.api_keys import new_token
from export_pipeline.requests.webhooks import secret_of
from export_pipeline_tests.acceptance.pipeline import Database, LocalShelf, open_pipeline
from export_pipeline_tests.adversarial import load_demo_data
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.gateway.clients import OURS, THEIRS, Gateway, open_gateway
from export_pipeline_tests.servers.postgres import PostgresServer

MARK = f"zztheirs{secrets.token_hex(4)}"
LIST, SEGMENT = list_id(OURS, 0), segment_id(OURS, 2)
THEIR_LIST, THEIR_SEGMENT = list_id(THEIRS, 0), segment_id(THEIRS, 2)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def gateway(
    request: pytest.FixtureRequest, postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    directory: Path = tmp_path_factory.mktemp("isolation")
    if request.param == "postgresql":
        with postgres_server.fresh_database() as url:
            yield from _opened(url, directory)
    else:
        yield from _opened(f"sqlite:///{directory}/application.db", directory)


def _opened(url: str, directory: Path) -> Iterator[Gateway]:
    load_demo_data(url, contacts=300, entities=120)
    database = Database(url)
    _mark(database)
    with (
        open_pipeline(database, LocalShelf(directory / "store"), directory) as pipeline,
        open_gateway(pipeline, EXPORT_RATE_LIMIT_URL="memory://") as gateway,
    ):
        yield gateway


def _mark(database: Database) -> None:
    """Every text that is theirs says so, and what is theirs points at rows of ours."""
    contact_texts = ("email", "first_name", "last_name", "name", "phone_number", "location", "city", "country", "line")
    contact_texts += ("facebook", "unique_name", "external_id", "anonymous_id", "whatsapp", "postal_code")
    entity_texts = ("external_id", "name", "tax_id", "country_code", "nationality", "email", "phone", "kyc_provider")
    marked = json.dumps({MARK: MARK})
    json_cast = "?::jsonb" if database.kind == "postgresql" else "?"
    for table, texts, documents in (
        ("contacts", contact_texts, ("custom_fields",)),
        ("entities", entity_texts, ("attributes", "entity_data")),
    ):
        columns = [f"{name} = ?" for name in texts] + [f"{name} = {json_cast}" for name in documents]
        values = [MARK] * len(texts) + [marked] * len(documents)
        database.execute(f"UPDATE {table} SET {', '.join(columns)} WHERE organization_id = ?", [*values, THEIRS.id])
    ours = [row[0] for row in database.query("SELECT id FROM contacts WHERE organization_id = ?", [OURS.id])]
    assert len(ours) > 20
    instant = "2025-01-01 00:00:00+00:00"
    for at, contact in enumerate(ours):
        for table, column in (("contact_emails", "email"), ("contact_tokens", "token")):
            child = {"id": 10**9 + at, "contact_id": contact, "organization_id": THEIRS.id, column: MARK}
            database.insert(table, {**child, "created_at": instant})
        for which in (LIST, THEIR_LIST):
            if not database.query(
                "SELECT 1 FROM contact_list_members WHERE list_id = ? AND contact_id = ?", [which, contact]
            ):
                member = {"list_id": which, "contact_id": contact, "organization_id": THEIRS.id}
                database.insert_only("contact_list_members", member)
    database.execute("UPDATE contact_lists SET name = ? WHERE organization_id = ?", [MARK, THEIRS.id])
    database.execute("UPDATE contact_segments SET name = ? WHERE organization_id = ?", [MARK, THEIRS.id])
    database.execute(
        "UPDATE contact_field_definitions SET name = ? WHERE organization_id = ? AND name = 'vip'", [MARK, THEIRS.id]
    )


def _their_ids(gateway: Gateway) -> dict[str, list[Any]]:
    contacts, entities = (
        [row[0] for row in gateway.rows(f"SELECT id FROM {table} WHERE organization_id = ?", THEIRS.id)]
        for table in ("contacts", "entities")
    )
    return {"contacts": contacts, "entities": [str(one) for one in entities]}


def _our_members(gateway: Gateway) -> set[int]:
    """Who is on our list by our own word."""
    statement = "SELECT contact_id FROM contact_list_members WHERE list_id = ? AND organization_id = ?"
    return {row[0] for row in gateway.rows(statement, LIST, OURS.id)}


def _asked(their_ids: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Requests that reach for more than is ours, by each of their inputs."""
    contacts, entities = their_ids["contacts"], their_ids["entities"]
    whole = {"include": ["all_emails", "comet_tokens"]}
    return [
        {**whole, "format": "json"},
        {**whole, "format": "json", "filters": {"id": contacts}},
        {**whole, "format": "json", "filters": {"or": [{"id": contacts}, {"not": {"email": MARK}}]}},
        {**whole, "format": "json", "filters": {"not": {"id": {"nin": contacts}}}},
        {**whole, "format": "csv", "filters": {"name": {"contains": MARK}}},
        {**whole, "format": "csv", "filters": {"email": {"starts_with": "zz"}}},
        {**whole, "format": "json", "list_ids": [LIST]},
        {**whole, "format": "json", "segment_ids": [SEGMENT]},
        {**whole, "format": "json", "list_ids": [LIST], "segment_ids": [SEGMENT], "filters": {"id": {"gte": 0}}},
        {"format": "csv", "layout": "sendgrid"},
        {"format": "ndjson", "layout": "sendgrid"},
        {"format": "csv", "layout": "cometly", "start_date": "1970-01-02 00:00:00", "end_date": "2037-01-01 00:00:00"},
        {"format": "csv", "layout": "sendgrid", "filters": {"custom_fields": {"is_null": False}}},
        {"dataset": "entities", "format": "json"},
        {"dataset": "entities", "format": "json", "filters": {"id": entities}},
        {"dataset": "entities", "format": "csv", "filters": {"or": [{"id": entities}, {"tax_id": {"is_null": False}}]}},
    ]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"list_ids": [THEIR_LIST]}, "unknown_list"),
    ({"list_ids": [LIST, THEIR_LIST]}, "unknown_list"),
    ({"segment_ids": [THEIR_SEGMENT]}, "unknown_segment"),
    ({"segment_ids": [SEGMENT, THEIR_SEGMENT], "list_ids": [LIST]}, "unknown_segment"),
    ({"filters": {f"custom_fields.{MARK}": MARK}}, "invalid_filter"),
    ({"filters": {"organization_id": THEIRS.id}}, "invalid_filter"),
    ({"columns": ["organization_id"]}, "unknown_column"),
    ({"columns": [MARK]}, "unknown_column"),
]


def test_no_input_of_a_request_brings_anything_of_another_organization(gateway: Gateway, tally: Tally) -> None:
    pipeline, theirs = gateway.pipeline, _their_ids(gateway)
    members = _our_members(gateway)
    assert members
    asked = _asked(theirs)
    results = pipeline.export_all([{"recipient_emails": [], **one} for one in asked])
    rows = 0
    for request, result in zip(asked, results, strict=True):
        assert (result.state.status, result.state.message) == ("completed", None), request
        rows += result.state.row_count or 0
        told = b"".join([*map(_unzipped, result.files), json.dumps(result.manifest).encode()])
        assert MARK.encode() not in told, request
        if request["format"] == "json":
            ids = {row["id"] for row in json.loads(result.files[0])}
            assert not ids & set(theirs[request.get("dataset", "contacts")]), request
            if request.get("list_ids") and not request.get("segment_ids"):
                # Others say that more of our rows are on our list.
                assert ids == members
    assert rows > 200
    refused = pipeline.export_all([{"recipient_emails": [], **one} for one, _ in REFUSED])
    assert [result.state.error_code for result in refused] == [code for _, code in REFUSED]
    assert not [result for result in refused if result.files]
    tally("reach into another organization", tries=len(asked) + len(REFUSED), survived=len(asked) + len(REFUSED))


def _unzipped(data: bytes) -> bytes:
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def test_no_endpoint_tells_or_changes_anything_of_another_organization(gateway: Gateway, tally: Tally) -> None:
    gu1 = {"X-Organization-ID": OURS.id}
    ours, theirs = gateway.caller(headers=gu1), gateway.caller(THEIRS.id, headers={"X-Organization-ID": THEIRS.id})
    asked = {"dataset": "contacts", "format": "csv", "recipient_emails": ["ana@example.com"]}
    key = {"Idempotency-Key": "the same for both"}
    uid = theirs.post("/v1/exports", asked, headers=key).json()["uid"]
    gateway.work()
    (row,) = gateway.rows("SELECT id FROM export_requests WHERE uid = ?", uid)
    theirs_url = theirs.get(f"/v1/exports/{uid}").json()["files"][0]["url"]

    answers = [
        ours.post("/v1/exports", asked, headers=key),  # not theirs again, but a new one of ours
        *[ours.call(method, f"/v1/exports/{uid}") for method in ("GET", "DELETE")],
        ours.delete(f"/v1/exports/{uid}/links"),
        ours.get(f"/v3/marketing/contacts/exports/{uid}"),
        ours.get("/v3/marketing/contacts/exports"),
        ours.get("/v3/marketing/lists"),
        ours.get(f"/v3/marketing/lists?page_token={THEIR_LIST}&page_size=100"),
        ours.get("/v3/marketing/segments/2.0"),
        ours.get("/v3/marketing/segments"),
        ours.get(f"/entities/export/jobs/{uid}"),
        ours.get(f"/entities/export/jobs/{uid}/download"),
        ours.get("/entities"),
        ours.get(f"/entities?externalId={MARK}"),
        ours.get(f"/entities?taxId={MARK}"),
        ours.get("/entities", headers={"X-Organization-ID": THEIRS.id}),
        ours.get(f"/public-api/v1/contacts/exports/{row[0]}"),
        ours.get("/public-api/v1/contacts?start_date=2000-01-01 00:00:00&end_date=2037-01-01 00:00:00&per_page=200"),
        *[ours.post("/v1/exports", {**asked, **wrong}) for wrong, _ in REFUSED if MARK not in json.dumps(wrong)],
        ours.post("/v3/marketing/contacts/exports", {"list_ids": [THEIR_LIST]}),
        ours.post("/v3/marketing/contacts/exports", {"segment_ids": [THEIR_SEGMENT]}),
        gateway.client.get(theirs_url.rsplit("/", 1)[0] + "/" + secrets.token_urlsafe(32)),
    ]
    for answer in answers:
        told = answer.text + str(dict(answer.headers))
        assert MARK not in told, answer.request.url
        assert uid not in told.replace(str(answer.request.url), ""), answer.request.url
        if answer.status_code < 300:
            assert THEIRS.id not in told, answer.request.url
    assert answers[0].status_code == 202
    assert answers[0].json()["uid"] != uid
    assert {answer.status_code for answer in answers[1:5]} == {404}
    # Theirs stands as it stood: nothing was canceled, no link revoked.
    assert theirs.get(f"/v1/exports/{uid}").json()["status"] == "completed"
    assert gateway.client.get(theirs_url).status_code == 200
    assert sum(answer.status_code == 200 for answer in answers) >= 6, "there was something to see"
    tally("request to another organization's", tries=len(answers), survived=len(answers))
    gateway.work()


def test_each_organization_signs_its_webhooks_with_a_secret_of_its_own(gateway: Gateway) -> None:
    with gateway.database.begin() as connection:
        ours, theirs = (secret_of(connection, one.id) for one in (OURS, THEIRS))
        assert secret_of(connection, OURS.id) == ours
    assert ours != theirs
    assert min(len(ours), len(theirs)) >= 32


def test_keys_cannot_be_guessed(gateway: Gateway) -> None:
    """Of 4,000 tokens none comes twice, and every bit of them is as often one as zero (within six sigma)."""
    import base64

    tokens = [new_token() for _ in range(4000)]
    assert len(set(tokens)) == len(tokens)
    raw = [int.from_bytes(base64.urlsafe_b64decode(f"{token}=")) for token in tokens]
    for bit in range(256):
        ones = sum(number >> bit & 1 for number in raw)
        assert abs(ones - len(raw) / 2) < 6 * math.sqrt(len(raw)) / 2, bit
    results = gateway.pipeline.export_all([{"recipient_emails": [], "columns": ["id"]} for _ in range(3)])
    parts = [result.manifest["files"][0]["key"].split("/") for result in results if result.manifest]
    prefixes = {part[2] for part in parts}
    assert [part[0] for part in parts] == [result.state.uid for result in results]
    assert len(prefixes) == 3
    assert all(len(prefix) == 32 and int(prefix, 16) >= 0 for prefix in prefixes), "128 random bits"
    with gateway.database.begin() as connection:
        made = api_keys.create_key(connection, OURS.id, ["contacts:export"]).secret
    assert len(base64.urlsafe_b64decode(f"{made.removeprefix(api_keys.PREFIX)}=")) == 32


def test_what_is_secret_is_compared_in_constant_time(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[Any, Any]] = []
    original = hmac.compare_digest

    def watched(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return original(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    key = gateway.key()
    with gateway.database.begin() as connection:
        assert api_keys.find_key(connection, key) is not None
    assert len(compared) == 1

    token = unsubscribe.make_token("k" * 32, 7, "ana@example.com")
    assert unsubscribe.verify_token("k" * 32, token) is not None
    assert unsubscribe.verify_token("l" * 32, token) is None
    assert len(compared) >= 3


def test_the_other_organizations_rows_are_marked(gateway: Gateway) -> None:
    """What the tests above look for is there to be found."""
    (result,) = gateway.pipeline.export_all([
        {"organization_id": THEIRS.id, "format": "json", "recipient_emails": [], "include": ["all_emails"]}
    ])  # fmt: skip
    assert result.files[0].count(MARK.encode()) > 100
