"""What comes in: the key first, then the body; and nothing that would have narrowed an export is dropped."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from export_pipeline.catalog.loader import load_catalog
from export_pipeline.database.types import RepeatedKeyError, read_json, read_stored
from export_pipeline.failures import ExportFailure
from export_pipeline.filters.segments import StoredSegment, segment_condition
from export_pipeline.gateway import submit
from export_pipeline.recurring.models import parse_template
from export_pipeline_tests.gateway.clients import OURS, Caller, Gateway

OWN, GU1 = "/v1/exports", "/entities/export/jobs"
SENDGRID, COMETLY = "/v3/marketing/contacts/exports", "/public-api/v1/contacts/exports"
RANGE = {"start_date": "2020-01-01 00:00:00", "end_date": "2030-01-01 00:00:00"}
VALID: dict[str, dict[str, Any]] = {
    OWN: {"dataset": "contacts", "format": "csv"},
    GU1: {"recipientEmails": ["ana@example.com"], "format": "csv"},
    SENDGRID: {"file_type": "csv"},
    COMETLY: RANGE,
}
WRONG_BODIES = [b"{", b"[]", b"x" * 1_000_001, b'{"a": 1, "a": 2}', b'{"shoe_size": 43}', b'{"a": "\\ud800"}']


@pytest.fixture
def caller(one_gateway: Gateway) -> Caller:
    return one_gateway.caller(headers={"X-Organization-ID": OURS.id})


@pytest.mark.parametrize("path", VALID)
def test_a_body_is_looked_at_only_after_the_key(one_gateway: Gateway, path: str) -> None:
    for content in WRONG_BODIES:
        for headers in ({}, {"Authorization": "Bearer ek_nobody"}):
            answer = one_gateway.client.post(path, content=content, headers=headers)
            assert answer.status_code == 401, content[:20]


@pytest.mark.parametrize("path", VALID)
def test_a_wrong_body_counts_against_the_rate(one_gateway: Gateway, caller: Caller, path: str) -> None:
    left = []
    for content in WRONG_BODIES[:3]:
        answer = caller.call("POST", path, content=content)
        assert answer.status_code in (400, 413, 422)
        left.append(int(answer.headers["X-RateLimit-Remaining"]))
    assert len(set(left)) == 3


@pytest.mark.parametrize("path", VALID)
def test_no_body_is_parsed_on_the_event_loop(
    one_gateway: Gateway, caller: Caller, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops: list[bool] = []

    def parse(data: bytes) -> Any:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            loops.append(False)
        else:
            loops.append(True)
        return read_json(data)

    monkeypatch.setattr(submit, "read_json", parse)
    assert caller.post(path, VALID[path]).status_code == 202
    assert loops == [False]


@pytest.mark.parametrize("path", VALID)
def test_a_key_given_twice_is_refused_by_its_name(one_gateway: Gateway, caller: Caller, path: str) -> None:
    before = one_gateway.rows("SELECT count(*) FROM export_requests")
    first = json.dumps(VALID[path])[1:-1]
    for body in (f'{{{first}, "filters": {{"country": "BR"}}, "filters": {{}}}}', f"{{{first}, {first}}}"):
        answer = caller.call("POST", path, content=body.encode())
        assert answer.status_code in (400, 422)
        assert "twice" in answer.text
        assert "filters" in answer.text or next(iter(VALID[path])) in answer.text
    nested = f'{{{first}, "options": [{{"a": {{"deep": 1, "deep": 1}}}}]}}'
    assert "deep" in caller.call("POST", path, content=nested.encode()).text
    assert one_gateway.rows("SELECT count(*) FROM export_requests") == before


UNKNOWN: list[tuple[str, dict[str, Any], str, str | None]] = [
    (OWN, {"filter": {"country": "BR"}}, "filter", "filters"),
    (OWN, {"list_id": ["1"]}, "list_id", "list_ids"),
    (GU1, {"filter": {"type": "person"}}, "filter", "filters"),
    (GU1, {"column": ["id"]}, "column", "columns"),
    (GU1, {"country": "BR"}, "country", None),
    (GU1, {"recipient_emails": ["bo@example.com"]}, "recipient_emails", "recipientEmails"),
    (SENDGRID, {"list_id": ["1"]}, "list_id", "list_ids"),
    (SENDGRID, {"segments": ["1"]}, "segments", "segment_ids"),
    (SENDGRID, {"query": "email LIKE '%@example.com'"}, "query", None),
    (COMETLY, {"end": "2021-01-01 00:00:00"}, "end", None),
    (COMETLY, {"custom_field_filters": []}, "custom_field_filters", None),
]


@pytest.mark.parametrize(("path", "given", "name", "meant"), UNKNOWN)
def test_an_unknown_field_is_refused_and_the_one_that_was_meant_is_named(
    one_gateway: Gateway, caller: Caller, path: str, given: dict[str, Any], name: str, meant: str | None
) -> None:
    before = one_gateway.rows("SELECT count(*) FROM export_requests")
    answer = caller.post(path, {**VALID[path], **given})
    assert answer.status_code in (400, 422)
    assert f"{name}: is not known" in answer.text
    assert meant is None or f"did you mean {meant}?" in answer.text
    assert one_gateway.rows("SELECT count(*) FROM export_requests") == before


@pytest.mark.parametrize("path", [*VALID, "/entities", "/v3/marketing/lists", "/v3/marketing/segments/2.0", SENDGRID])
@pytest.mark.parametrize("query", ["countr=BR", "list_ids=1", "ids=1", "filters=%7B%7D"])
def test_a_parameter_that_would_be_ignored_is_refused(caller: Caller, path: str, query: str) -> None:
    for method in ("POST", "GET"):
        answer = caller.call(method, f"{path}?{query}", json=VALID.get(path) if method == "POST" else None)
        assert answer.status_code in (400, 405, 422), (method, answer.text)


def test_a_parameter_given_twice_is_refused(caller: Caller) -> None:
    query = "&".join(f"{name}={value}" for name, value in RANGE.items())
    again = caller.call("GET", f"/public-api/v1/contacts?{query}&end_date=2029-01-01 00:00:00")
    assert (again.status_code, list(again.json()["errors"])) == (422, ["end_date"])
    both = caller.post(f"{COMETLY}?end_date=2029-01-01 00:00:00", RANGE)
    assert (both.status_code, list(both.json()["errors"])) == (422, ["end_date"])
    assert caller.post(f"{COMETLY}?{query}", RANGE).status_code == 202
    assert caller.post(f"{SENDGRID}?file_type=json", {"file_type": "csv"}).status_code == 400


def test_what_clients_are_known_to_send_beside_the_contract_is_taken(caller: Caller) -> None:
    assert caller.post(SENDGRID, {"field_selections": ["*"]}).status_code == 202
    assert caller.post(SENDGRID, {"field_selections": ["email"]}).status_code == 400


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(document=_JSON)
def test_json_without_a_repeated_key_is_read_as_it_is(document: Any) -> None:
    assert read_json(json.dumps(document)) == document


@given(document=st.dictionaries(st.text(max_size=5), _JSON, min_size=1, max_size=3), wrap=st.booleans())
def test_a_repeated_key_is_found_wherever_it_stands(document: dict[str, Any], wrap: bool) -> None:
    text = json.dumps(document)
    twice = f"{text[:-1]}, {text[1:]}"
    with pytest.raises(RepeatedKeyError):
        read_json(f'[{{"a": {twice}}}]' if wrap else twice)


def test_a_key_given_twice_in_a_row_of_sqlite_fails_the_row_by_its_column(one_gateway: Gateway) -> None:
    row = {"organization_id": OURS.id, "dataset": "contacts", "format": "csv", "recipient_emails": "[]"}
    columns = ", ".join([*row, "filters"])
    execute = one_gateway.pipeline.database.execute
    execute(
        f"INSERT INTO export_requests ({columns}) VALUES (?, ?, ?, ?, ?)",
        [*row.values(), '{"country": "BR", "or": [{"id": 1}], "country": "AR"}'],
    )
    (result,) = one_gateway.work()
    assert (result.state.status, result.state.error_code) == ("failed", "invalid_request")
    message = "filters: has the key 'country' twice; give it once. Correct it and send a new request."
    assert result.state.message == message


def test_a_key_given_twice_in_a_template_or_a_segment_is_named() -> None:
    stored = read_stored('{"dataset": "contacts", "filters": {}, "filters": {"id": 1}}')
    with pytest.raises(ExportFailure, match="request: has the key 'filters' twice"):
        parse_template(stored)
    segment = StoredSegment(id="s", filter='{"country": "BR", "country": "AR"}', query_dsl=None)
    with pytest.raises(ExportFailure, match="segment s: its filter has the key 'country' twice"):
        segment_condition(segment, load_catalog(None)["contacts"], (), "UTC")


def test_a_document_with_a_repeated_key_is_neither_an_object_nor_a_list() -> None:
    """Readers of other columns (permissions, scopes) take it for JSON of a wrong shape: nothing is granted."""
    stored = read_stored('["contacts:export", {"a": 1, "a": 2}]')
    assert not isinstance(stored, list | dict)
    assert json.dumps(stored)
