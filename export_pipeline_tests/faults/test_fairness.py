"""Nobody is starved: what one organization asks for, however much or large, bounds nobody else's waiting time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from export_pipeline_tests.faults import paced
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.stack import Stack, finished, open_stack

pytestmark = pytest.mark.timeout(600)

SLOTS_OF_ONE = 3
"""``tag_concurrency_limits`` of dagster.yaml: of four slots, one organization gets three."""
SLOTS_OF_LARGE = 2
"""... and large exports get two."""
LARGE_ROWS = 1000
LARGE_SECONDS = 0.4
"""Of each row of a large export: it outlasts fifty small ones."""
LONGEST_WAIT = 60
"""Seconds that a small request may wait on a machine that others use, too: a tick of the sensor (5 s), a turn of the
queue (1 s), and the end of at most one small export before it."""
MOST_OVERTAKING = 30
"""Exports of the other organization that may begin while a small request waits: three slots take about ten in a tick of
the sensor (5 s) and a turn of the queue (1 s). Unlike seconds, a count holds on a slow machine as well."""


@pytest.fixture(scope="module")
def stack(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    settings = {"EXPORT_LARGE_ROWS": str(LARGE_ROWS)}
    with open_stack(postgres_server, s3_server, tmp_path_factory.mktemp("fairness"), **settings) as stack:
        paced.create(stack)
        yield stack


def rows(stack: Stack, where: str, *values: Any) -> list[dict[str, Any]]:
    with psycopg.connect(stack.database_url, row_factory=dict_row) as connection:
        return connection.execute(
            f"SELECT * FROM export_requests WHERE {where} ORDER BY id".encode(), values
        ).fetchall()


def cancel_rest(stack: Stack, organization: str) -> None:
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(
            "UPDATE export_requests SET cancel_requested_at = now() WHERE organization_id = %s "
            "AND status IN ('queued', 'running')",
            [organization],
        )


def waits(found: list[dict[str, Any]]) -> list[float]:
    """Seconds from the insertion to the begin."""
    return sorted((row["started_at"] - row["created_at"]).total_seconds() for row in found)


def told(seconds: list[float]) -> str:
    return f"median {seconds[len(seconds) // 2]:.1f} s, longest {seconds[-1]:.1f} s"


def most_at_once(found: list[dict[str, Any]]) -> int:
    """How many ran at the same time at most, from when they began and ended."""
    spans = [
        (row["started_at"], row["completed_at"] or datetime.max.replace(tzinfo=row["started_at"].tzinfo))
        for row in found
    ]
    return max(sum(begin <= instant < end for begin, end in spans) for instant, _ in spans)


def test_a_thousand_requests_of_one_organization_do_not_keep_a_small_one_of_another(stack: Stack, tally: Tally) -> None:
    many = paced.pace(stack, "many", rows=20, reading=0.05)
    few = paced.pace(stack, "few", rows=5)
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(
            "INSERT INTO export_requests (organization_id, dataset, format, recipient_emails) "
            "SELECT %s, 'slow', 'csv', '[]' FROM generate_series(1, 1000)",
            [many],
        )
    paced.wait_until(lambda: rows(stack, "organization_id = 'many' AND status = 'completed'"), "one of many", 120)
    small = []
    for _ in range(5):  # at different moments of the ticks, while the others go on
        uid = paced.ask(stack, few)
        small.append(stack.wait(uid, finished, 180))
    left = rows(stack, "organization_id = 'many' AND status = 'queued'")
    begun = rows(stack, "organization_id = 'many' AND started_at IS NOT NULL")
    cancel_rest(stack, many)
    seconds = waits(small)
    print(f"one small request beside 1,000 of another organization waits: {told(seconds)}")
    print(f"of the 1,000, {len(begun)} had begun, at most {most_at_once(begun)} at once")
    assert len(left) > 500, "the queue was empty before the small requests came"
    assert [row["status"] for row in small] == ["completed"] * 5
    assert seconds[-1] < LONGEST_WAIT
    overtaking = [sum(row["created_at"] < other["started_at"] < row["started_at"] for other in begun) for row in small]
    assert max(overtaking) <= MOST_OVERTAKING
    assert most_at_once(begun) <= SLOTS_OF_ONE
    tally(f"1,000 requests of another organization: {told(seconds)} of waiting", tries=5, survived=5)
    paced.wait_until(lambda: not rows(stack, "status IN ('queued', 'running')"), "the canceled ones", 240)


def test_large_exports_leave_slots_for_small_ones(stack: Stack, tally: Tally) -> None:
    """Three exports that were large before are large again: two run, and fifty small ones go past them."""
    large = [paced.pace(stack, f"large {number}", rows=LARGE_ROWS + 1, reading=LARGE_SECONDS) for number in range(3)]
    small = paced.pace(stack, "small", rows=5)
    remember(stack, large)
    asked = [paced.ask(stack, organization) for organization in large]
    paced.wait_until(
        lambda: len(rows(stack, "organization_id LIKE 'large%%' AND status = 'running'")) == SLOTS_OF_LARGE,
        "large",
        240,
    )
    began = time.monotonic()
    uids = [paced.ask(stack, small) for _ in range(50)]
    done = [stack.wait(uid, finished, 240) for uid in uids]
    took = time.monotonic() - began
    seconds = waits(done)
    states = sorted(stack.row(uid)["status"] for uid in asked)
    print(
        f"50 small exports beside large ones of {(LARGE_ROWS + 1) * LARGE_SECONDS:.0f} s: {told(seconds)}, "
        f"all in {took:.0f} s"
    )
    assert {row["status"] for row in done} == {"completed"}
    assert {size_class(stack, uid) for uid in asked} == {"large"}
    assert {size_class(stack, uid) for uid in uids} == {"small"}
    assert states == ["queued", "running", "running"], "the large exports were not there all the time, two at once"
    assert seconds[0] < LONGEST_WAIT
    for organization in large:
        cancel_rest(stack, organization)
    paced.wait_until(lambda: not rows(stack, "status IN ('queued', 'running')"), "the canceled ones", 240)
    tally(f"50 small exports beside large ones: {told(seconds)} of waiting", tries=50, survived=50)


def remember(stack: Stack, organizations: list[str]) -> None:
    """Each has had such an export before."""
    with psycopg.connect(stack.database_url) as connection:
        for organization in organizations:
            connection.execute(
                "INSERT INTO export_requests (organization_id, dataset, format, recipient_emails, status, row_count, "
                "started_at, completed_at) VALUES (%s, 'slow', 'csv', '[]', 'expired', %s, now(), now())",
                [organization, LARGE_ROWS + 1],
            )


def size_class(stack: Stack, uid: str) -> str:
    (run,) = paced.runs_of(stack, uid)
    return run.dagster_run.tags["export/size_class"]


def test_an_export_turns_out_large_once_its_rows_are_counted(stack: Stack) -> None:
    uid = paced.ask(stack, paced.pace(stack, "surprise", rows=LARGE_ROWS + 1))
    assert stack.wait(uid, finished, 120)["status"] == "completed"
    assert size_class(stack, uid) == "large"
