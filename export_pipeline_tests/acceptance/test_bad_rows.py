"""A row that cannot be served fails by itself, says why, and stops nothing else."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from export_pipeline.database import engine as database
from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline.demo.data.rows import list_id, segment_id
from export_pipeline.orchestration.sensors.requests import run_request
from export_pipeline.requests import queue
from export_pipeline_tests.acceptance.pipeline import Database, Pipeline, Result

Bad = tuple[Mapping[str, Any], str, str]
"""What the row asks for, the ``error_code`` it must end with, and what its message must begin with."""
_PYTHONS_LIMIT, _TEN_LEVELS = (
    ("invalid_request", "filters: is nested too deeply"),
    ("invalid_filter", "filters.not.not."),
)
TOO_DEEP = _TEN_LEVELS if sys.version_info >= (3, 13) else _PYTHONS_LIMIT
"""Before 3.13 Python's own parser gives up; since then the limit of ten levels is the one that answers."""
NAMES: Sequence[Bad] = [
    ({"dataset": "invoices"}, "unknown_dataset", "dataset: "),
    ({"dataset": ""}, "unknown_dataset", "dataset: "),
    ({"dataset": "contacts; DROP TABLE contacts"}, "unknown_dataset", "dataset: "),
    ({"dataset": "x" * 100_000}, "unknown_dataset", "dataset: "),
    ({"format": "pdf"}, "unknown_format", "format: "),
    ({"format": "CSV"}, "unknown_format", "format: "),
    ({"format": "../../etc/passwd"}, "unknown_format", "format: "),
    ({"compression": "zip"}, "unknown_compression", "compression: "),
    ({"format": "xlsx", "compression": "gzip"}, "unknown_compression", "compression: "),
    ({"format": "parquet", "compression": "gzip"}, "unknown_compression", "compression: "),
    ({"layout": "nope"}, "unknown_layout", "layout: "),
    ({"columns": ["id", "shoe_size"]}, "unknown_column", "columns: 'shoe_size' "),
    ({"columns": ["name", "name"]}, "unknown_column", "columns: name "),
    ({"columns": ["name", "full_name"]}, "unknown_column", "columns: name "),
    ({"columns": ["organization_id"]}, "unknown_column", "columns: "),
    ({"columns": [1, 2]}, "invalid_request", "columns: "),
    ({"columns": {"id": True}}, "invalid_request", "columns: "),
    ({"columns": '"id"'}, "invalid_request", "columns: "),
    ({"layout": "cometly", "columns": ["custom_fields"]}, "unknown_column", "columns: "),
]
FILTERS: Sequence[Bad] = [
    ({"filters": {"shoe_size": 1}}, "invalid_filter", "filters.shoe_size: "),
    ({"filters": {"organization_id": ORGANIZATIONS[1].id}}, "invalid_filter", "filters.organization_id: "),
    (
        {"dataset": "entities", "filters": {"organization_id": ORGANIZATIONS[1].id}},
        "invalid_filter",
        "filters.organization_id: ",
    ),
    ({"filters": {"score": {"like": 1}}}, "invalid_filter", "filters.score.like: "),
    ({"filters": {"score": {"contains": "1"}}}, "invalid_filter", "filters.score.contains: "),
    ({"filters": {"custom_fields": {"eq": "{}"}}}, "invalid_filter", "filters.custom_fields.eq: "),
    ({"filters": {"score": "high"}}, "invalid_filter", "filters.score: "),
    ({"filters": {"id": "7"}}, "invalid_filter", "filters.id: "),
    ({"filters": {"id": 2**63}}, "invalid_filter", "filters.id: "),
    ({"filters": {"id": 1.5}}, "invalid_filter", "filters.id: "),
    ({"filters": {"is_subscribed": "true"}}, "invalid_filter", "filters.is_subscribed: "),
    ({"filters": {"created_at": {"gte": "yesterday"}}}, "invalid_filter", "filters.created_at.gte: "),
    ({"filters": {"birth_date": "2024-02-30"}}, "invalid_filter", "filters.birth_date: "),
    ({"filters": {"contact_id": "not-a-uuid"}}, "invalid_filter", "filters.contact_id: "),
    ({"filters": {"lifetime_value": {"gt": "NaN"}}}, "invalid_filter", "filters.lifetime_value.gt: "),
    ({"filters": {"score": {"between": [1]}}}, "invalid_filter", "filters.score.between: "),
    ({"filters": {"name": {"is_null": "yes"}}}, "invalid_filter", "filters.name.is_null: "),
    ({"filters": {"name": {}}}, "invalid_filter", "filters.name: "),
    ({"filters": {"or": []}}, "invalid_filter", "filters.or: "),
    ({"filters": {"or": [{"name": "a"}, {"nope": 1}]}}, "invalid_filter", "filters.or[1].nope: "),
    ({"filters": {"not": "name"}}, "invalid_filter", "filters.not: "),
    ({"filters": {"id": {"in": [1, "2"]}}}, "invalid_filter", "filters.id.in[1]: "),
    ({"filters": {"id": {"in": 1}}}, "invalid_filter", "filters.id.in: "),
    ({"filters": {"id": list(range(10_001))}}, "invalid_filter", "filters.id: "),
    ({"filters": {"or": [{"id": 1}] * 501}}, "invalid_filter", "filters: "),
    ({"filters": '{"not":' * 12 + '{"id":1}' + "}" * 12}, "invalid_filter", "filters.not.not"),
    ({"filters": '{"not":' * 900 + "{}" + "}" * 900}, "invalid_filter", "filters.not.not"),
    ({"filters": [{"id": 1}]}, "invalid_request", "filters: "),
    ({"filters": '"id = 1"'}, "invalid_request", "filters: "),
]
PEOPLE: Sequence[Bad] = [
    ({"recipient_emails": ["nobody"]}, "invalid_recipient", "recipient_emails[0]: "),
    ({"recipient_emails": ["a@example.com", "b@@example.com"]}, "invalid_recipient", "recipient_emails[1]: "),
    ({"recipient_emails": ["a@example.com\r\nBcc: b@example.com"]}, "invalid_recipient", "recipient_emails[0]: "),
    ({"recipient_emails": [""]}, "invalid_recipient", "recipient_emails[0]: "),
    ({"recipient_emails": ["a@b.com, c@d.com"]}, "invalid_recipient", "recipient_emails[0]: "),
    ({"recipient_emails": [f"p{n}@example.com" for n in range(27)]}, "too_many_recipients", "recipient_emails: "),
    ({"recipient_emails": {"to": "a@example.com"}}, "invalid_request", "recipient_emails: "),
    ({"recipient_emails": '"a@example.com"'}, "invalid_request", "recipient_emails: "),
    ({"recipient_emails": [1]}, "invalid_request", "recipient_emails: "),
    ({"recipient_emails": "null"}, "invalid_request", "recipient_emails: "),
    ({"notify_email": False, "recipient_emails": ["nobody"]}, "invalid_recipient", "recipient_emails[0]: "),
]
LIMITS: Sequence[Bad] = [
    (
        {"start_date": "2024-02-01 00:00:00", "end_date": "2024-01-01 00:00:00"},
        "invalid_date_range",
        "end_date: ",
    ),
    ({"start_date": "2024-01-01 12:00:00", "end_date": "2024-01-01 12:00:00"}, "invalid_date_range", "end_date: "),
    ({"max_file_size_mb": 0}, "invalid_max_file_size", "max_file_size_mb: "),
    ({"max_file_size_mb": -5}, "invalid_max_file_size", "max_file_size_mb: "),
    ({"max_file_size_mb": 2_000_000_000}, "invalid_max_file_size", "max_file_size_mb: "),
    ({"options": {"delimiter": ";"}}, "invalid_option", "options.delimiter: "),
    ({"options": {"csv_delimiter": "::"}}, "invalid_option", "options.csv_delimiter: "),
    ({"options": {"csv_decimal_mark": ","}}, "invalid_option", "options.csv_decimal_mark: "),
    ({"options": {"guard_formulas": "no"}}, "invalid_option", "options.guard_formulas: "),
    ({"options": {"time_zone": "Mars/Olympus"}}, "invalid_option", "options.time_zone: "),
    ({"options": {"time_zone": "../../../etc/passwd"}}, "invalid_option", "options.time_zone: "),
    ({"options": []}, "invalid_request", "options: "),
]
NOBODYS = "00000000-0000-4000-8000-000000000000"
SPELLINGS = (ORGANIZATIONS[0].id.upper(), "{" + ORGANIZATIONS[0].id + "}", ORGANIZATIONS[0].id.replace("-", ""))
GROUPS: Sequence[Bad] = [
    *[({"organization_id": spelled}, "invalid_request", "organization_id: must be a UUID") for spelled in SPELLINGS],
    ({"organization_id": ""}, "invalid_request", "organization_id: "),
    ({"list_ids": ["1"]}, "unknown_list", "list_ids[0]: '1' is not a UUID"),
    ({"list_ids": [NOBODYS]}, "unknown_list", f"list_ids: the organization has no list {NOBODYS}"),
    ({"list_ids": [list_id(ORGANIZATIONS[1], 0)]}, "unknown_list", "list_ids: the organization has no list "),
    ({"list_ids": [NOBODYS] * 1001}, "unknown_list", "list_ids: holds 1001 ids"),
    ({"dataset": "entities", "list_ids": [NOBODYS]}, "unknown_list", "list_ids: dataset entities has no lists"),
    ({"list_ids": [1]}, "invalid_request", "list_ids: "),
    ({"segment_ids": ["x'; DROP TABLE contacts; --"]}, "unknown_segment", "segment_ids[0]: "),
    ({"segment_ids": [segment_id(ORGANIZATIONS[1], 0)]}, "unknown_segment", "segment_ids: the organization has no "),
    ({"dataset": "entities", "segment_ids": [NOBODYS]}, "unknown_segment", "segment_ids: dataset entities has no "),
    ({"include": ["comet_tokens", "shoes"]}, "unknown_include", "include[1]: 'shoes' is not a child list"),
    ({"dataset": "entities", "include": ["all_emails"]}, "unknown_include", "include[0]: "),
    ({"include": '"all_emails"'}, "invalid_request", "include: "),
    ({"dataset": "entities", "filters": {"type": "robot"}}, "invalid_filter", "filters.type: must be one of person, "),
    ({"dataset": "entities", "filters": {"type": ["person", ""]}}, "invalid_filter", "filters.type[1]: must be one "),
    ({"webhook_url": "http://127.0.0.1/"}, "invalid_webhook", "webhook_url: "),
]
BATCHES = {
    "names": NAMES,
    "filters": FILTERS,
    "people": PEOPLE,
    "limits": LIMITS,
    "groups": GROUPS,
}
MALFORMED: Sequence[Bad] = [
    ({"filters": '{"name": "\\ud800"}'}, "invalid_filter", "filters.name: "),
    ({"recipient_emails": '["\\ud800@example.com"]'}, "invalid_recipient", "recipient_emails[0]: "),
    ({"columns": '["\\ud800"]'}, "unknown_column", "columns: "),
    ({"options": '{"\\ud800": 1}'}, "invalid_option", "options"),
    ({"filters": 7}, "invalid_request", "filters: "),
    ({"filters": '{"not":' * 1500 + "{}" + "}" * 1500}, *TOO_DEEP),
    ({"options": {"csv_delimiter": None}}, "invalid_option", "options.csv_delimiter: "),
]
"""Only SQLite stores these."""


@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES)
def test_bad_rows_fail_with_their_reason_and_the_good_row_behind_them_is_served(pipeline: Pipeline, batch: str) -> None:
    check(pipeline, BATCHES[batch])


def test_json_that_only_postgresql_nests_so_deep_is_refused(postgresql_pipeline: Pipeline) -> None:
    check(postgresql_pipeline, [({"filters": '{"not":' * 5000 + "{}" + "}" * 5000}, *TOO_DEEP)])


def test_what_only_sqlite_stores_is_refused_by_the_name_of_its_column(sqlite_pipeline: Pipeline) -> None:
    check(sqlite_pipeline, MALFORMED)


def check(pipeline: Pipeline, bad: Sequence[Bad]) -> None:
    good = {"columns": ["id"]}
    *failed, served = pipeline.export_all([*(row for row, _, _ in bad), good])
    wrong = [
        (row, result.state.status, result.state.error_code, result.state.message)
        for (row, code, begins), result in zip(bad, failed, strict=True)
        if not is_refused(result, code, begins)
    ]
    assert not wrong, f"{len(wrong)} rows, the first: {wrong[:3]!r:.2000}"
    assert served.state.status == "completed"
    assert served.state.row_count
    assert len(served.mails) == 1
    assert not pipeline.staged()


def _names_code_and_column_alone(description: str, code: str) -> bool:
    """What was typed is for the row: Dagster's event log gets the code and the column."""
    pattern = rf"{code}: [a-z_ ]+ has to be corrected by the requester; export_requests\.message says how\."
    return re.fullmatch(pattern, description) is not None


def is_refused(result: Result, code: str, begins: str) -> bool:
    """Failed at once, as a failure that was meant, without a retry, a mail, or a long message."""
    message = result.state.message or ""
    told = [(event.step_key, event.step_failure_data.user_failure_data) for event in result.failures]
    return (
        (result.state.status, result.state.error_code) == ("failed", code)
        and message.startswith(begins)
        and len(message) < 1000
        and "\n" not in message
        and "@" not in message
        and result.state.attempt == 1
        and [step for step, _ in told] == ["plan"]
        and _names_code_and_column_alone(told[0][1].description, code)
        and result.retries == 0
        and not result.mails
        and not result.files
    )


@pytest.mark.parametrize(
    "row",
    [
        {"organization_id": "o" * 10_000},
        {"organization_id": "a\nb\x00c"},
        {"organization_id": "é漢字"},
        {"organization_id": ""},
        {"dataset": ""},
    ],
    ids=lambda row: next(f"{name}={value!r:.14}" for name, value in row.items()),
)
def test_no_row_spoils_the_claim_of_the_others(sqlite_pipeline: Pipeline, row: Mapping[str, Any]) -> None:
    """The daemon's tick claims all waiting rows at once: one that it cannot read must not stop it for ever."""
    strange, good = sqlite_pipeline.export_all([row, {"columns": ["id"]}])
    assert strange.state.status in ("failed", "completed")
    assert not strange.state.row_count
    assert good.state.status == "completed"


def test_text_that_is_no_utf_8_does_not_stop_the_claim(sqlite_demo: Database, sqlite_pipeline: Pipeline) -> None:
    sqlite_demo.query(
        "INSERT INTO export_requests (organization_id, dataset, format, recipient_emails) "
        "VALUES (CAST(x'fffe' AS TEXT), 'contacts', 'csv', '[]') RETURNING id"
    )
    engine = database.create_engine(sqlite_demo.url)
    try:
        with engine.begin() as connection:
            claimed = queue.claim(connection, limit=10)
        assert [run_request(claim).tags for claim in claimed]
    finally:
        engine.dispose()
        sqlite_demo.query("DELETE FROM export_requests WHERE organization_id = CAST(x'fffe' AS TEXT) RETURNING id")
    assert sqlite_pipeline.export(columns=["id"]).state.status == "completed"


def test_neither_runs_nor_ticks_leave_a_connection_behind(postgresql_pipeline: Pipeline) -> None:
    """A code server lives for weeks: what each run or tick opens must not wait for the garbage collector."""
    gc.collect()
    counted = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    before = postgresql_pipeline.database.query(counted)[0][0]
    gc.disable()
    try:
        done = postgresql_pipeline.export(columns=["id"])
        refused = postgresql_pipeline.export(dataset="nope")
        for sensor in ("export_requests", "export_cancellations", "export_reconciler"):
            assert postgresql_pipeline.tick(sensor).skip_message
        after = postgresql_pipeline.database.query(counted)[0][0]
    finally:
        gc.enable()
    assert (done.state.status, refused.state.status) == ("completed", "failed")
    assert after <= before
