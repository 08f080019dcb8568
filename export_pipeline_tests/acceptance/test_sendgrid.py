"""SendGrid, Export Contacts: lists, segments, the csv byte for byte, the lines of ndjson (contracts, 2)."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pytest

from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline.demo.data.rows import SEGMENTS, list_id, segment_id
from export_pipeline_tests.acceptance.application import CONTACTS, stored_rows
from export_pipeline_tests.acceptance.pipeline import Pipeline, Result

OURS, THEIRS = ORGANIZATIONS[0], ORGANIZATIONS[1]
BEFORE = [
    "email", "first_name", "last_name", "address_line_1", "address_line_2", "city", "state_province_region",
    "postal_code", "country", "alternate_emails", "phone_number", "whatsapp", "line", "facebook", "unique_name",
    "created_at", "updated_at", "contact_id",
]  # fmt: skip
AFTER = ["phone_number_id", "external_id", "anonymous_id"]
Row = Mapping[str, Any]


def contacts(pipeline: Pipeline) -> list[Row]:
    return [dict(zip(CONTACTS, row, strict=True)) for row in stored_rows(pipeline.database, "contacts", OURS.id)]


def members(pipeline: Pipeline, *numbers: int) -> set[int]:
    marks = ", ".join("?" * len(numbers))
    statement = f"SELECT contact_id FROM contact_list_members WHERE list_id IN ({marks})"
    return {row[0] for row in pipeline.database.query(statement, [list_id(OURS, number) for number in numbers])}


def in_segment(number: int) -> Any:
    """A segment's stored JSON filter, as plain Python."""
    return {
        0: lambda row: row["is_subscribed"] is True and row["score"] is not None and row["score"] >= 50,
        1: lambda row: row["country"] in ("Brasil", "México"),
    }[number]


def ids(result: Result) -> list[int]:
    assert (result.state.status, result.state.message) == ("completed", None)
    (file,) = result.files
    return [row["id"] for row in json.loads(file)]


@pytest.mark.parametrize("numbers", [(0,), (1,), (0, 1), (0, 1, 2), (2, 0, 2)])
def test_the_lists_are_a_union_and_each_contact_comes_once(pipeline: Pipeline, numbers: Sequence[int]) -> None:
    result = pipeline.export(format="json", columns=["id"], list_ids=[list_id(OURS, number) for number in numbers])
    assert ids(result) == sorted(members(pipeline, *numbers))
    assert len(numbers) == 1 or members(pipeline, 0) & members(pipeline, 1), "the lists overlap"


@pytest.mark.parametrize("number", [0, 1])
def test_a_segment_is_its_stored_filter(pipeline: Pipeline, number: int) -> None:
    assert SEGMENTS[number][2] is None
    result = pipeline.export(format="json", columns=["id"], segment_ids=[segment_id(OURS, number)])
    assert ids(result) == [row["id"] for row in contacts(pipeline) if in_segment(number)(row)]


def test_a_segment_with_a_query_is_what_the_query_says(pipeline: Pipeline) -> None:
    number = next(at for at, (_, _, query) in enumerate(SEGMENTS) if query and "%@example.com%" in query)
    result = pipeline.export(format="json", columns=["id"], segment_ids=[segment_id(OURS, number)])
    expected = [row["id"] for row in contacts(pipeline) if "@example.com" in (row["email"] or "")]
    assert ids(result) == expected
    assert expected


def test_lists_and_segments_together_are_a_union_of_both_within_the_filters(pipeline: Pipeline) -> None:
    result = pipeline.export(
        format="json",
        columns=["id"],
        list_ids=[list_id(OURS, 0)],
        segment_ids=[segment_id(OURS, 1)],
        filters={"id": {"gt": 500}},
    )
    on_list, chosen = members(pipeline, 0), in_segment(1)
    either = [row["id"] for row in contacts(pipeline) if row["id"] in on_list or chosen(row)]
    assert ids(result) == [key for key in either if key > 500]


@pytest.mark.parametrize("neither", [{}, {"list_ids": [], "segment_ids": []}])
def test_neither_list_nor_segment_is_all_contacts(pipeline: Pipeline, neither: Mapping[str, Any]) -> None:
    result = pipeline.export(format="json", columns=["id"], **neither)
    assert ids(result) == [row["id"] for row in contacts(pipeline)]


def definitions(pipeline: Pipeline) -> list[str]:
    statement = "SELECT name FROM contact_field_definitions WHERE organization_id = ?"
    return sorted(row[0] for row in pipeline.database.query(statement, [OURS.id]))


def custom_value(row: Row, name: str) -> str:
    """As the JSON has it: a number with its digits, a text without its quotes."""
    fields = json.loads(row["custom_fields"] or "null", parse_float=str, parse_int=str)
    value = fields.get(name) if isinstance(fields, dict) else None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return json.dumps(json.loads(row["custom_fields"])[name])
    return "" if value is None else str(value)


def cell(row: Row, name: str) -> str:
    value = row[name]
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%dT%H:%M:%SZ")
    if name == "alternate_emails":
        return ",".join(json.loads(value or "[]"))
    return "" if value is None else str(value)


def line(values: Sequence[str]) -> str:
    return ",".join('"' + value.replace('"', '""') + '"' if value else "" for value in values) + "\n"


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_the_csv_is_byte_for_byte_of_the_documented_form(pipeline: Pipeline, compression: str) -> None:
    plain = [row["id"] for row in contacts(pipeline) if is_plain(row)]
    result = pipeline.export(
        format="csv",
        layout="sendgrid",
        compression=compression,
        options={"guard_formulas": False},
        filters={"id": {"in": plain}},
    )
    assert (result.state.status, result.state.message) == ("completed", None)
    (file,) = result.files
    data = gzip.decompress(file) if compression == "gzip" else file
    fields = definitions(pipeline)
    assert len(fields) >= 3
    expected = line([name.upper() for name in (*BEFORE, *fields, *AFTER)])
    for row in contacts(pipeline):
        if is_plain(row):
            expected += line(
                [cell(row, name) for name in BEFORE]
                + [custom_value(row, name) for name in fields]
                + [cell(row, name) for name in AFTER]
            )
    assert len(plain) > 1000
    assert data.decode() == expected


def is_plain(row: Row) -> bool:
    """Whether the documentation says how the row is written: its arrays are of plain addresses, its times have a
    year of four digits."""
    addresses = json.loads(row["alternate_emails"] or "[]")
    flat = isinstance(addresses, list) and all(
        isinstance(a, str) and a and not set(a) & set(', "\n') for a in addresses
    )
    fields = json.loads(row["custom_fields"] or "{}")
    simple = isinstance(fields, dict) and not any(isinstance(value, dict | list) for value in fields.values())
    return flat and simple and row["created_at"].year > 999 and row["updated_at"].year > 999


def test_the_legacy_header_is_the_one_of_the_public_fixture(pipeline: Pipeline) -> None:
    result = pipeline.export(format="csv", layout="sendgrid_legacy", filters={"id": 1})
    header = result.files[0].split(b"\n")[0]
    assert header == (
        b'"EMAIL","FIRST_NAME","LAST_NAME","ADDRESS_LINE_1","ADDRESS_LINE_2","CITY","STATE_PROVINCE_REGION",'
        b'"POSTAL_CODE","COUNTRY","ALTERNATE_EMAILS","PHONE_NUMBER","WHATSAPP","LINE","FACEBOOK","UNIQUE_NAME",'
        b'"CREATED_AT","UPDATED_AT","CONTACT_ID"'
    )


def test_a_line_of_ndjson_has_lower_case_keys_and_the_custom_fields_nested(pipeline: Pipeline) -> None:
    result = pipeline.export(format="ndjson", layout="sendgrid")
    assert (result.state.status, result.state.message) == ("completed", None)
    lines = [json.loads(text) for text in gzip.decompress(result.files[0]).splitlines()]
    stored = contacts(pipeline)
    assert len(lines) == len(stored)
    for got, row in zip(lines, stored, strict=True):
        assert list(got) == [*BEFORE, "custom_fields", *AFTER]
        assert got["contact_id"] == row["contact_id"]
        assert got["custom_fields"] == json.loads(row["custom_fields"] or "null")
        assert got["created_at"] == row["created_at"].replace(microsecond=0).isoformat().replace("+00:00", "Z")


def test_one_contact_with_unreadable_custom_fields_keeps_nobody_from_theirs(sqlite_pipeline: Pipeline) -> None:
    database = sqlite_pipeline.database
    ((key, stored),) = database.query("SELECT id, custom_fields FROM contacts WHERE id = 7")
    database.execute("UPDATE contacts SET custom_fields = 'not json' WHERE id = ?", [key])
    try:
        segment = next(segment_id(OURS, at) for at, (_, _, query) in enumerate(SEGMENTS) if query and "plan" in query)
        for asked in ({"layout": "sendgrid"}, {"segment_ids": [segment], "columns": ["id"]}):
            state = sqlite_pipeline.export(format="csv", **asked).state
            assert (state.status, state.message) == ("completed", None)
    finally:
        database.execute("UPDATE contacts SET custom_fields = ? WHERE id = ?", [stored, key])


@pytest.mark.slow
def test_segments_that_are_too_much_together_are_refused_before_anything_is_read(pipeline: Pipeline) -> None:
    many = [f"10000000-0000-4000-8000-{number:012d}" for number in range(5)]
    query = "SELECT contact_id, updated_at FROM contact_data WHERE " + " OR ".join(["first_name = 'x'"] * 500)
    row = {"organization_id": OURS.id, "name": "large", "filter": {}, "query_dsl": query}
    for one in many:
        pipeline.database.insert_only("contact_segments", {"id": one, **row, "created_at": "2024-01-01 00:00:00"})
    try:
        assert pipeline.export(format="csv", segment_ids=many[:4]).state.status == "completed"
        state = pipeline.export(format="csv", segment_ids=many).state
    finally:
        pipeline.database.execute("DELETE FROM contact_segments WHERE name = 'large'")
    assert (state.status, state.error_code) == ("failed", "invalid_filter")
    assert (state.message or "").startswith("filters: together with the segments they hold 2500 conditions; at most")


def test_no_mail_is_sent_where_none_is_asked_for(pipeline: Pipeline) -> None:
    result = pipeline.export(format="csv", layout="sendgrid", notify_email=False, recipient_emails=[])
    assert (result.state.status, result.mails) == ("completed", [])


def test_another_organizations_list_is_not_a_list(pipeline: Pipeline) -> None:
    result = pipeline.export(list_ids=[list_id(THEIRS, 0)])
    assert (result.state.status, result.state.error_code) == ("failed", "unknown_list")
    assert list_id(THEIRS, 0) in (result.state.message or "")
