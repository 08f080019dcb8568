"""``export-pipeline recurring``: what a user types and reads."""

from __future__ import annotations

import json

import pytest

from export_pipeline_tests.cli.test_cli import run
from export_pipeline_tests.orchestration.conftest import Pipeline, pipeline
from export_pipeline_tests.recurring.rows import TEMPLATE, at, complete, look, made, row

__all__ = ["pipeline"]

NEXT = [
    (
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", "2"),
        ["2026-03-29T03:00:00+02:00  2026-03-29T01:00:00Z", "2026-03-30T02:30:00+02:00  2026-03-30T00:30:00Z"],
    ),
    (
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:00:00+02:00", "2"),
        ["2026-10-25T02:30:00+02:00  2026-10-25T00:30:00Z", "2026-10-26T02:30:00+01:00  2026-10-26T01:30:00Z"],
    ),
    (
        ("*/30 * * * *", "Europe/Berlin", "2026-10-25T00:00:00Z", "3"),
        [
            "2026-10-25T02:30:00+02:00  2026-10-25T00:30:00Z",
            "2026-10-25T02:00:00+01:00  2026-10-25T01:00:00Z",
            "2026-10-25T02:30:00+01:00  2026-10-25T01:30:00Z",
        ],
    ),
    (("30 2 * * *", "Europe/Berlin", "2026-03-29T02:15", "1"), ["2026-03-30T02:30:00+02:00  2026-03-30T00:30:00Z"]),
    (("0 0 29 2 *", "UTC", "2026-01-01T00:00:00Z", "1"), ["2028-02-29T00:00:00+00:00  2028-02-29T00:00:00Z"]),
]


@pytest.mark.parametrize(("asked", "lines"), NEXT)
def test_next_prints_local_time_with_its_offset_and_utc(asked: tuple[str, str, str, str], lines: list[str]) -> None:
    cron, zone, start, count = asked
    shown = run("recurring", "next", "--cron", cron, "--timezone", zone, "--from", start, "--count", count)
    assert (shown.exit_code, shown.output.splitlines()) == (0, lines)


WRONG = [
    (("next", "--cron", "0 0 * *"), 1, "invalid_schedule: cron: '0 0 * *' needs five fields"),
    (("next", "--cron", "0 0 * * *", "--timezone", "Mars"), 1, "time_zone: 'Mars' is not an IANA time zone"),
    (("next", "--cron", "0 0 * * *", "--from", "tomorrow"), 2, "--from: is not a time such as"),
    (("run-now", "7", "--from", "2026-03-01"), 2, "is not an instant with its offset"),
    (("next",), 2, "name a recurring export by its id, or a schedule by --cron"),
    (("next", "7"), 1, "no row 7 in recurring_exports"),
    (("pause", "7"), 1, "there is no recurring export 7"),
    (("resume", "7"), 1, "there is no recurring export 7"),
    (("run-now", "7"), 1, "no row 7 in recurring_exports"),
    (("run-now", "7", "--again", "x", "--from", "2026-03-01T00:00:00Z"), 2, "not both"),
    (("add", "--organization", "a", "--cron", "0 0 * * *", "--request", "{}"), 1, "request.dataset: is missing"),
    (("add", "--organization", "a", "--cron", "@daily", "--request", "{}"), 1, "invalid_schedule"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), WRONG, ids=[" ".join(case[0]) for case in WRONG])
def test_what_is_wrong_is_told(pipeline: Pipeline, arguments: tuple[str, ...], code: int, words: str) -> None:
    shown = run("recurring", *arguments)
    assert shown.exit_code == code
    assert words in " ".join(shown.output.split())


UNSERVABLE = [
    ({"dataset": "shoes"}, (), "unknown_dataset: dataset: 'shoes' is not one of people"),
    ({"columns": ["shoe_size"]}, (), "unknown_column: columns"),
    ({"filters": {"shoe_size": 43}}, (), "invalid_filter: filters.shoe_size"),
    ({"recipient_emails": ["nobody"]}, (), "invalid_recipient: recipient_emails[0]"),
    ({"options": {"time_zone": "localtime"}}, (), "invalid_option: options.time_zone"),
    ({"dataset": "timeless"}, ("--window", "previous_period"), "invalid_date_range: window_from"),
    ({"from_email": "a@b.example"}, (), "sender_domain_unknown"),
]


@pytest.mark.parametrize(("asked", "arguments", "words"), UNSERVABLE, ids=[case[2] for case in UNSERVABLE])
def test_what_could_not_be_served_is_refused_when_it_is_added(
    pipeline: Pipeline, asked: dict[str, object], arguments: tuple[str, ...], words: str
) -> None:
    (catalog,) = pipeline.home.glob("**/people.yaml")
    timeless = catalog.read_text().replace("name: people", "name: timeless").replace("created_at: created_at\n", "")
    catalog.with_name("timeless.yaml").write_text(timeless)
    request = json.dumps(TEMPLATE | asked)
    shown = run("recurring", "add", "--organization", "acme", "--cron", "0 6 * * *", "--request", request, *arguments)
    assert shown.exit_code == 1
    assert words in " ".join(shown.output.split())
    assert listed() == []
    with pipeline.database.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM export_requests").scalar() == 0


def test_a_key_given_twice_in_the_request_is_named(pipeline: Pipeline) -> None:
    shown = run(
        "recurring", "add", "--organization", "a", "--cron", "0 6 * * *", "--request", '{"filters": {}, "filters": {}}'
    )
    assert (shown.exit_code, "has the key 'filters' twice" in shown.output) == (2, True)


def add(*arguments: str) -> int:
    shown = run(
        "recurring", "add", "--organization", "acme", "--cron", "0  6 * * mon", "--timezone", "Europe/Madrid",
        "--request", json.dumps(TEMPLATE), *arguments,
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    return int(shown.output)


def listed(*arguments: str) -> list[dict[str, object]]:
    shown = run("recurring", "list", "--json", *arguments)
    assert shown.exit_code == 0, shown.output
    rows: list[dict[str, object]] = json.loads(shown.output)
    return rows


def test_add_list_pause_and_resume(pipeline: Pipeline) -> None:
    first = add("--window", "since_last_success", "--since", "2026-03-01T00:00:00+01:00", "--owner", "u-17")
    second = add("--lag", "0", "--overlap", "queue", "--catch-up", "all", "--max-failures", "2")
    one, two = listed()
    assert (one["id"], one["cron"], one["owner"], one["high_water_mark"]) == (
        first, "0 6 * * mon", "u-17", "2026-02-28T23:00:00Z",
    )  # fmt: skip
    assert (two["overlap_policy"], two["catch_up_policy"], two["max_failures"]) == ("queue", "all", 2)
    assert "T06:00:00+0" in str(one["next"])
    assert listed("--organization", "other") == []
    assert run("recurring", "pause", str(second), "--reason", "migration").output == "Paused.\n"
    assert run("recurring", "pause", str(second)).exit_code == 1
    assert [(row["pause_reason"], row["next"]) for row in listed()] == [(None, one["next"]), ("migration", None)]
    assert "paused: migration" in run("recurring", "list").output
    assert run("recurring", "resume", str(second)).output == "Resumed.\n"
    assert row(pipeline.database, second).paused_at is None
    shown = run("recurring", "next", str(first), "--from", "2026-03-28T00:00:00Z", "--count", "1")
    assert shown.output == "2026-03-30T06:00:00+02:00  2026-03-30T04:00:00Z\n"


def test_run_now_its_turn_an_earlier_window_and_any_window(pipeline: Pipeline) -> None:
    recurring_id = add("--window", "since_last_success", "--since", "2026-03-01T00:00:00Z")
    uid = run("recurring", "run-now", str(recurring_id)).output.strip()
    assert "has not ended" in run("recurring", "run-now", str(recurring_id)).output
    (first,) = made(pipeline.database)
    assert (first.uid, first.window_from) == (uid, at("1 00:00"))
    complete(pipeline.database, first.id)
    run("recurring", "run-now", str(recurring_id), "--again", uid)
    march = ("--from", "2026-03-02T00:00:00Z", "--before", "2026-03-03T00:00:00Z")
    run("recurring", "run-now", str(recurring_id), *march)
    windows = [(request.window_from, request.window_before) for request in made(pipeline.database)]
    assert windows == [(first.window_from, first.window_before)] * 2 + [(at("2 00:00"), at("3 00:00"))]
    assert row(pipeline.database, recurring_id).last_fired_for is None
    assert look(pipeline.database, "3 10:00").made == []


@pytest.mark.parametrize(
    ("cron", "warned"),
    [
        ("*/90 * * * *", "minute */90 is not every 90 minutes: it restarts in each hour, and fires at minute 0."),
        ("*/45 * * * *", "and fires at minute 0, 45."),
        ("0 */5 * * *", "and fires at hour 0, 5, 10, 15, 20."),
        ("*/15 */6 * * *", ""),
        ("0,30 6 * * MON", ""),
    ],
)
def test_a_step_that_does_not_fit_its_field_is_warned_of(pipeline: Pipeline, cron: str, warned: str) -> None:
    added = run("recurring", "add", "--organization", "a", "--cron", cron, "--request", json.dumps(TEMPLATE))
    assert (added.exit_code, added.stdout) == (0, "1\n")
    assert warned in added.stderr
    assert bool(warned) == bool(added.stderr)
