"""Poison and floods: however many rows, whatever is in them, whatever one does to its process: the queue goes on."""

from __future__ import annotations

import gc
import json
import random
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st

from export_pipeline.failures import FailureCode
from export_pipeline.launcher.worker import WORKER_TAG, Worker
from export_pipeline.orchestration.sensors import ROWS_PER_TICK
from export_pipeline.orchestration.sensors.requests import CLAIMED_PER_ORGANIZATION
from export_pipeline_tests.acceptance.conftest import (  # noqa: F401 - fixtures
    postgresql_demo,
    postgresql_pipeline,
    sqlite_demo,
    sqlite_pipeline,
)
from export_pipeline_tests.acceptance.pipeline import Pipeline, Result
from export_pipeline_tests.faults import paced
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server
from export_pipeline_tests.stack import finished, open_stack

pytestmark = pytest.mark.timeout(600)
ROWS = 10_000
LONGEST_TICK = 20.0
"""Seconds, on a machine that others use, too; the daemon gives a tick 60."""
MOST_MEMORY = 100 * 2**20
"""Bytes that a hundred ticks may keep; what a tick makes is gone at the next."""


@pytest.fixture(params=["postgresql", "sqlite"])
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    found: Pipeline = request.getfixturevalue(f"{request.param}_pipeline")
    return found


def test_ten_thousand_rows_at_once_keep_ticks_short_and_others_in_turn(pipeline: Pipeline, tally: Tally) -> None:
    """The daemon's part is played: a claimed request begins, so that its organization gets the next."""
    database, flood = pipeline.database, "10000000-0000-4000-8000-000000000000"
    database.execute(
        "INSERT INTO export_requests (organization_id, dataset, format, recipient_emails) "
        f"WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {ROWS}) "
        "SELECT ?, 'contacts', 'csv', '[]' FROM numbers",
        [flood],
    )
    gc.collect()
    process, seconds, claimed = psutil.Process(), list[float](), list[str]()
    memory = process.memory_info().rss
    try:
        for tick in range(40):
            if tick == 10:
                database.insert("export_requests", {"organization_id": "b", **_SMALL})
            asked = _tick(pipeline, seconds)
            assert len(asked) <= ROWS_PER_TICK
            keys = [request.run_key for request in asked]
            assert not set(keys) & set(claimed)
            claimed += keys
            if tick == 10:
                assert "b" in {request.tags["export/organization"] for request in asked}, "another had to wait"
            waiting = "SELECT count(*) FROM export_requests WHERE status = 'queued' AND claimed_at IS NOT NULL"
            assert database.query(waiting)[0][0] <= CLAIMED_PER_ORGANIZATION + 1
            if tick >= 4:  # before that nothing begins: the bound has to hold by itself
                database.execute(
                    "UPDATE export_requests SET status = 'failed' WHERE status = 'queued' AND claimed_at IS NOT NULL"
                )
    finally:
        database.execute("DELETE FROM export_requests WHERE organization_id IN (?, 'b')", [flood])
    kept = process.memory_info().rss - memory
    print(f"{ROWS} rows: {len(claimed)} claimed in 40 ticks, longest {max(seconds):.2f} s, {kept >> 20} MB kept")
    assert max(seconds) < LONGEST_TICK
    assert kept < MOST_MEMORY
    assert len(claimed) >= 34 * ROWS_PER_TICK
    tally("10,000 rows at once: claims of 40 ticks", tries=len(claimed), survived=len(set(claimed)))


_SMALL = {"dataset": "contacts", "format": "csv", "recipient_emails": "[]"}


def _tick(pipeline: Pipeline, seconds: list[float]) -> list[Any]:
    began = time.perf_counter()
    data = pipeline.tick("export_requests")
    seconds.append(time.perf_counter() - began)
    return list(data.run_requests or [])


_ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
_ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_ANY_TEXT, inner, max_size=3),
    max_leaves=6,
)
_INSTANTS = st.sampled_from(
    ["0001-01-01 00:00:00", "9999-12-31 23:59:59", "2026-03-29 02:30:00", "1970-01-01 00:00:00"]
)
_COLUMNS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(
        ["requested_by", "dataset", "format", "compression", "layout", "email_locale", "from_email", "from_sender_id",
         "webhook_url"],
        _ANY_TEXT,
    ),
    **dict.fromkeys(
        ["columns", "filters", "list_ids", "segment_ids", "include", "options", "recipient_emails"],
        _ANY_JSON.filter(lambda value: value is not None).map(json.dumps),
    ),
    **dict.fromkeys(["start_date", "end_date", "window_from", "window_before"], _INSTANTS),
    **dict.fromkeys(["max_file_size_mb", "priority"], st.integers(-(2**31), 2**31 - 1)),
}  # fmt: skip
_SQLITE_ONLY = st.binary(max_size=20) | st.floats() | st.integers(-(2**63), 2**63 - 1) | _ANY_TEXT
"""Only text and numbers of the column's kind come past the INSERT; SQLite converts between the two."""
_UNCHECKED = [name for name in _COLUMNS if name not in ("columns", "filters", "list_ids", "segment_ids", "include",
                                                        "options", "recipient_emails")]  # fmt: skip


def garbage(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    """A row with one to four columns that nobody would write."""
    columns = dict(_COLUMNS)
    if kind == "sqlite":
        columns |= {name: columns[name] | _SQLITE_ONLY for name in _UNCHECKED}
    pairs = [st.tuples(st.just(name), values) for name, values in columns.items()]
    return st.lists(st.one_of(pairs), min_size=1, max_size=4, unique_by=lambda pair: pair[0]).map(dict)


def test_rows_of_garbage_fail_by_themselves_and_the_good_ones_among_them_complete(
    pipeline: Pipeline, chance: random.Random, tally: Tally
) -> None:
    seen: list[tuple[dict[str, Any], Result]] = []

    @with_seed(chance.getrandbits(32))
    @settings(
        max_examples=4, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(garbage(pipeline.database.kind), min_size=10, max_size=12))
    def rows_at_once(rows: list[dict[str, Any]]) -> None:
        good = {"columns": ["id"], "filters": {"id": -1}}
        taken = [row for row in rows if inserted(pipeline, row)]
        *results, served = pipeline.export_all([*taken, good])
        assert served.state.status == "completed"
        seen.extend(zip(taken, results, strict=True))
        for sensor in ("export_requests", "export_cancellations", "export_reconciler"):
            assert pipeline.tick(sensor).skip_message

    rows_at_once()
    bad = [
        (row, result.state.status, result.state.error_code, result.state.message)
        for row, result in seen
        if not is_told(result)
    ]
    failed = [result for _, result in seen if result.state.status == "failed"]
    tally(f"a row of garbage ({pipeline.database.kind})", tries=len(seen), survived=len(seen) - len(bad), lost=len(bad))
    print(f"{len(seen)} rows of garbage, {len(failed)} failed, the others meant something")
    assert bad == []
    assert len(failed) > len(seen) / 2


def inserted(pipeline: Pipeline, row: dict[str, Any]) -> bool:
    """Whether the database takes the row: what it refuses at the INSERT needs no export."""
    asked = {"organization_id": "c", **_SMALL, **row}
    try:
        (number,) = pipeline.database.insert("export_requests", asked)
    except Exception:  # noqa: BLE001 - of either driver
        return False
    pipeline.database.execute("DELETE FROM export_requests WHERE id = ?", [number])
    return True


def is_told(result: Result) -> bool:
    state = result.state
    if state.status == "completed":
        return True
    known = state.error_code in set(FailureCode) - {FailureCode.INTERNAL_ERROR}
    return state.status == "failed" and known and bool(state.message) and not result.mails and not result.files


def test_a_row_that_kills_its_process_each_time_fails_after_its_attempts_and_delays_nobody(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path: Path, tally: Tally
) -> None:
    settings = {"EXPORT_MAX_ATTEMPTS": "2"}
    with open_stack(postgres_server, s3_server, tmp_path, **settings) as stack:
        paced.create(stack)
        poison = paced.ask(stack, paced.pace(stack, "poison", rows=600, reading=0.5), ["poison@example.com"])
        good, killed = paced.pace(stack, "good", rows=5), set[int]()
        served, deadline = list[dict[str, Any]](), time.monotonic() + 400
        while not finished(stack.row(poison)):
            assert time.monotonic() < deadline, stack.row(poison)
            if (worker := worker_at_work(stack, poison)) and worker.pid not in killed:
                killed.add(worker.pid)
                worker.kill()
                served.append(stack.wait(paced.ask(stack, good), finished, 180))
            time.sleep(0.3)
        row = stack.row(poison)
        assert (row["status"], row["error_code"], row["attempt"]) == ("failed", "attempts_exhausted", 2)
        assert len(killed) == 2
        assert {one["status"] for one in served} == {"completed"}
        assert stack.mails("poison@example.com") == []
        assert stack.objects(poison) == []
        tally("a row that kills its process in every attempt", tries=1, survived=1)
        tally("a row behind one that kills its process", tries=len(served), survived=len(served))


def worker_at_work(stack: Any, uid: str) -> psutil.Process | None:
    """The process that reads the rows of a request."""
    if stack.row(uid)["stage"] != "filter_entities":
        return None
    for record in paced.runs_of(stack, uid):
        run = record.dagster_run
        worker = Worker.of_tag(run.run_id, run.tags.get(WORKER_TAG))
        if run.status is dg.DagsterRunStatus.STARTED and worker is not None:
            with suppress(psutil.NoSuchProcess):
                return psutil.Process(worker.pid)
    return None
