"""Cometly's dialect: each documented field, message and rate."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest

from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline.requests.models import load_request
from export_pipeline.requests.validation.rows import date_range_of
from export_pipeline_tests.acceptance.pipeline import Pipeline
from export_pipeline_tests.gateway.clients import OURS, THEIRS, Caller, Gateway, open_gateway

EXPORTS = "/public-api/v1/contacts/exports"
CONTACTS = "/public-api/v1/contacts"
ALL = {"start_date": "1000-01-01 00:00:00", "end_date": "9000-12-31 23:59:59"}


def ids_in_range(gateway: Gateway) -> list[int]:
    """Some of the demo's contacts were created in year 1."""
    statement = "SELECT id FROM contacts WHERE organization_id = ? AND created_at BETWEEN ? AND ? ORDER BY id"
    return [row[0] for row in gateway.rows(statement, OURS.id, "1000-01-02 00:00:00", "9000-12-30 00:00:00")]


def fresh_space(gateway: Gateway) -> Caller:
    """A space without contacts that nobody has asked for anything yet."""
    return gateway.caller(str(uuid4()))


@pytest.fixture
def ours(gateway: Gateway) -> Caller:
    """Our space."""
    return gateway.caller()


def test_an_export_is_created_followed_and_downloaded(gateway: Gateway, ours: Caller) -> None:
    asked = ours.post(EXPORTS, {**ALL, "include_comet_tokens": 1})
    assert asked.status_code == 202
    export_id = asked.json()["export_id"]
    assert asked.json() == {"export_id": export_id, "status": "queued"}
    assert isinstance(export_id, int)
    queued = ours.get(f"{EXPORTS}/{export_id}").json()
    message = "Export is being processed. Please check back in a few minutes."
    created_at = queued.pop("created_at")
    assert datetime.fromisoformat(created_at).tzinfo is not None
    assert queued == {"export_id": export_id, "status": "queued", "message": message}
    gateway.pipeline.database.execute(
        "UPDATE export_requests SET status = 'running', claimed_at = created_at WHERE id = ?", [export_id]
    )
    running = ours.get(f"{EXPORTS}/{export_id}").json()
    assert (running["status"], running["message"]) == ("processing", message)
    gateway.pipeline.database.execute(
        "UPDATE export_requests SET status = 'queued', claimed_at = NULL WHERE id = ?", [export_id]
    )
    (result,) = gateway.work()
    assert result.state.message is None
    done = ours.get(f"{EXPORTS}/{export_id}").json()
    assert set(done) == {"export_id", "status", "created_at", "completed_at", "download_url", "expires_at"}
    assert done["status"] == "completed"
    lives = datetime.fromisoformat(done["expires_at"]) - datetime.now(UTC)
    assert timedelta(minutes=14) < lives <= timedelta(minutes=15)
    lines = [
        json.loads(line) for line in gzip.decompress(gateway.client.get(done["download_url"]).content).splitlines()
    ]
    assert [line["id"] for line in lines] == ids_in_range(gateway)
    assert all(list(line) == ["id", "email", "name", "phone", "location", "comet_tokens"] for line in lines)
    again = ours.get(f"{EXPORTS}/{export_id}").json()
    assert again["download_url"] != done["download_url"]


def test_parameters_may_stand_in_the_query(gateway: Gateway, ours: Caller) -> None:
    asked = ours.call("POST", EXPORTS, params={**ALL, "include_all_emails": "true"})
    assert asked.status_code == 202
    (row,) = gateway.rows(
        "SELECT format, compression, layout, include FROM export_requests WHERE id = ?", asked.json()["export_id"]
    )
    assert row[:3] == ("ndjson", "gzip", "cometly")
    assert "all_emails" in str(row[3])
    gateway.work()


def test_midnight_is_a_time_and_never_a_date_alone(gateway: Gateway, ours: Caller) -> None:
    asked = {"start_date": "2024-01-16 00:00:00", "end_date": "2024-01-17 00:00:00"}
    export_id = ours.post(EXPORTS, asked).json()["export_id"]
    with gateway.database.connect() as connection:
        request = load_request(connection, export_id)
    _, before = date_range_of(request, gateway.services.dataset("contacts"), ZoneInfo("UTC"))
    assert before == datetime(2024, 1, 17, 0, 0, 1, tzinfo=UTC)
    same = ours.post(EXPORTS, {**asked, "start_date": asked["end_date"]})
    assert (same.status_code, list(same.json()["errors"])) == (422, ["end_date"])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "start_date"),
    ({"start_date": ALL["start_date"]}, "end_date"),
    ({**ALL, "start_date": "2025-01-01"}, "start_date"),
    ({**ALL, "start_date": 20250101}, "start_date"),
    ({**ALL, "start_date": "2025-1-1 00:00:00"}, "start_date"),
    ({"start_date": ALL["end_date"], "end_date": ALL["start_date"]}, "end_date"),
    ({"start_date": ALL["start_date"], "end_date": ALL["start_date"]}, "end_date"),
    ({**ALL, "end_date": "9000-12-31"}, "end_date"),
    ({**ALL, "end_date": "9999-12-31 23:59:59"}, "end_date"),
    ({**ALL, "include_comet_tokens": "yes"}, "include_comet_tokens"),
    ({**ALL, "include_all_emails": 2}, "include_all_emails"),
    ({**ALL, "include_all_emails": [1]}, "include_all_emails"),
]


@pytest.mark.parametrize(("body", "field"), WRONG)
def test_what_cannot_be_served_is_422_with_its_field(one_gateway: Gateway, body: dict[str, Any], field: str) -> None:
    answer = fresh_space(one_gateway).post(EXPORTS, body)
    assert answer.status_code == 422, answer.json()
    assert answer.json() == {"message": answer.json()["message"], "errors": {field: [answer.json()["message"]]}}
    assert answer.json()["message"].startswith(f"{field}: ")


def test_errors_have_cometlys_shape(one_gateway: Gateway) -> None:
    client = one_gateway.client
    assert (client.post(EXPORTS).status_code, client.post(EXPORTS).json()) == (401, {"message": "Unauthenticated."})
    entities = one_gateway.caller(str(uuid4()), ("entities:export",)).get(f"{EXPORTS}/1")
    assert (entities.status_code, entities.json()) == (403, {"message": "This action is unauthorized."})
    unknown = fresh_space(one_gateway).get(f"{EXPORTS}/{2**62}")
    assert (unknown.status_code, unknown.json()) == (404, {"message": "Export not found."})
    for wrong in ("x", "0", "-1", str(2**70), "1.5"):
        answer = fresh_space(one_gateway).get(f"{EXPORTS}/{wrong}")
        assert (answer.status_code, list(answer.json()["errors"])) == (422, ["export_id"])


def test_another_spaces_export_is_404(gateway: Gateway, ours: Caller) -> None:
    export_id = ours.post(EXPORTS, ALL).json()["export_id"]
    assert ours.get(f"{EXPORTS}/{export_id}").status_code == 200
    stranger = gateway.caller(THEIRS.id).get(f"{EXPORTS}/{export_id}")
    assert (stranger.status_code, stranger.json()) == (404, {"message": "Export not found."})
    gateway.work()


@pytest.mark.parametrize("stored", ["failed", "canceled", "expired"])
def test_whatever_else_ends_an_export_is_failed_and_says_why(one_gateway: Gateway, stored: str) -> None:
    caller = fresh_space(one_gateway)
    export_id = caller.post(EXPORTS, ALL).json()["export_id"]
    one_gateway.pipeline.database.execute(
        "UPDATE export_requests SET status = ?, message = 'because' WHERE id = ?", [stored, export_id]
    )
    export = caller.get(f"{EXPORTS}/{export_id}").json()
    assert (export["status"], "download_url" in export) == ("failed", False)
    assert ("because" in export["message"]) == (stored != "expired")


@pytest.mark.slow
def test_five_creates_and_thirty_reads_a_minute_for_all_keys_of_a_space(gateway: Gateway) -> None:
    wait_for_a_young_minute()
    space = str(uuid4())
    callers = [gateway.caller(space), gateway.caller(space)]
    creates = [callers[at % 2].post(EXPORTS, ALL) for at in range(7)]
    assert [answer.status_code for answer in creates] == [202] * 5 + [429] * 2
    assert [answer.headers["X-RateLimit-Remaining"] for answer in creates] == ["4", "3", "2", "1", "0", "0", "0"]
    assert {answer.headers["X-RateLimit-Limit"] for answer in creates} == {"5"}
    assert creates[-1].json() == {"message": "Too Many Attempts."}
    assert 1 <= int(creates[-1].headers["Retry-After"]) <= 60
    path = f"{EXPORTS}/{creates[0].json()['export_id']}"
    reads = [callers[at % 2].get(path).status_code for at in range(32)]
    assert reads == [200] * 30 + [429] * 2
    assert fresh_space(gateway).post(EXPORTS, ALL).status_code == 202
    gateway.work()


def wait_for_a_young_minute() -> None:
    """Windows end with the clock's minute; what is counted must not lie across an end."""
    while time.time() % 60 > 48:
        time.sleep(0.2)


COUNTING = """
import sys
from concurrent.futures import ThreadPoolExecutor
from export_pipeline.gateway.services import MINUTE, Limiter
from export_pipeline.database.engine import create_engine
from export_pipeline.settings import Settings
settings = Settings.from_environment()
limiter = Limiter.open(settings, create_engine(settings.database_url, connections=4))
with ThreadPoolExecutor(4) as threads:
    counts = list(threads.map(lambda _: limiter.count(150, MINUTE, "test", sys.argv[1]).allowed, range(100)))
print(sum(counts))
"""


@pytest.mark.slow
def test_two_processes_count_together(gateway: Gateway) -> None:
    environment = {**os.environ, **gateway.pipeline.environment}
    name = str(uuid4())
    command = [sys.executable, "-c", COUNTING, name]
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    allowed = [int(process.communicate(timeout=120)[0]) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    hits = [hits for key, hits in gateway.rows("SELECT key, hits FROM rate_windows") if name in key]
    assert sum(hits) == 200
    assert len(hits) > 1 or sum(allowed) == 150


def test_rates_may_be_counted_in_memory(sqlite_installation: Pipeline) -> None:
    with open_gateway(sqlite_installation, EXPORT_RATE_LIMIT_URL="memory://") as gateway:
        wait_for_a_young_minute()
        caller = fresh_space(gateway)
        assert [caller.post(EXPORTS, ALL).status_code for _ in range(6)] == [202] * 5 + [429]


def walk(caller: Caller, start: str, direction: str) -> list[list[dict[str, Any]]]:
    pages, url = [], start
    while url:
        page = caller.get(url).json()
        pages.append(page["data"])
        url = page[f"{direction}_page_url"]
    return pages


def test_contacts_are_listed_newest_first_there_and_back(gateway: Gateway, ours: Caller) -> None:
    parameters = "start_date=1000-01-01 00:00:00&end_date=9000-12-31 23:59:59"
    stored = ids_in_range(gateway)[::-1]
    size = len(stored) // 4 + 1
    there = walk(ours, f"{CONTACTS}?{parameters}&per_page={size}", "next")
    assert [contact["id"] for page in there for contact in page] == stored
    assert len(there) == 4
    last = ours.get(f"{CONTACTS}?{parameters}&per_page={size}").json()
    assert (last["prev_cursor"], last["prev_page_url"], last["per_page"]) == (None, None, size)
    assert last["path"] == "http://gateway.test/public-api/v1/contacts"
    while last["next_page_url"]:
        last = ours.get(last["next_page_url"]).json()
    back = walk(ours, last["prev_page_url"], "prev")
    assert back == there[-2::-1]


def test_a_listed_contact_is_a_line_of_the_export(gateway: Gateway, ours: Caller) -> None:
    asked = {**ALL, "include_comet_tokens": "1", "include_all_emails": "1"}
    listed = ours.call("GET", CONTACTS, params={**asked, "per_page": "5000"}).json()["data"]
    ours.post(EXPORTS, {**ALL, "include_comet_tokens": True, "include_all_emails": True})
    (result,) = gateway.work()
    assert listed == [json.loads(line) for line in gzip.decompress(result.files[0]).splitlines()][::-1]


def test_dates_of_the_list_are_the_spaces_wall_clock(gateway: Gateway, ours: Caller) -> None:
    ((moment,),) = gateway.rows(
        "SELECT created_at FROM contacts WHERE organization_id = ? ORDER BY id LIMIT 1", OURS.id
    )
    at = moment if isinstance(moment, datetime) else datetime.fromisoformat(moment).replace(tzinfo=UTC)
    zone = ZoneInfo(ORGANIZATIONS[0].time_zone)
    local = at.astimezone(zone).replace(tzinfo=None, microsecond=0)
    asked = {"start_date": str(local), "end_date": str(local + timedelta(seconds=1))}
    found = ours.call("GET", CONTACTS, params=asked).json()["data"]
    ((first,),) = gateway.rows("SELECT id FROM contacts WHERE organization_id = ? ORDER BY id LIMIT 1", OURS.id)
    assert first in [contact["id"] for contact in found]
    before = {"start_date": str(local - timedelta(seconds=2)), "end_date": str(local - timedelta(seconds=1))}
    assert first not in [contact["id"] for contact in ours.call("GET", CONTACTS, params=before).json()["data"]]


LIST_WRONG = [
    ({}, "start_date"),
    ({**ALL, "per_page": "0"}, "per_page"),
    ({**ALL, "per_page": "5001"}, "per_page"),
    ({**ALL, "cursor": "x"}, "cursor"),
    ({**ALL, "cursor": "eyJpZCI6IjEgT1IgMT0xIn0"}, "cursor"),
    ({**ALL, "custom_field_filters": "[]"}, "custom_field_filters"),
]


@pytest.mark.parametrize(("parameters", "field"), LIST_WRONG)
def test_a_wrong_parameter_of_the_list_is_422(one_gateway: Gateway, parameters: dict[str, str], field: str) -> None:
    answer = fresh_space(one_gateway).call("GET", CONTACTS, params=parameters)
    assert (answer.status_code, list(answer.json()["errors"])) == (422, [field])
