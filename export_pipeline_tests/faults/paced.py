"""The exported view of the daemon's tests, made as large and as slow as an organization's line in ``pace`` says."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg
import psycopg

from export_pipeline.orchestration import tags
from export_pipeline_tests.stack import Stack

_VIEW = """
CREATE TABLE pace (organization_id text PRIMARY KEY, rows integer NOT NULL, counting float NOT NULL,
                   reading float NOT NULL);
CREATE OR REPLACE VIEW slow AS
SELECT number AS id, pace.organization_id
FROM pace, generate_series(1, pace.rows) number
WHERE CASE
    WHEN current_query() LIKE '%count(%' THEN pace.counting = 0 OR pg_sleep(pace.counting + 0 * number) IS NOT NULL
    ELSE pace.reading = 0 OR pg_sleep(pace.reading + 0 * number) IS NOT NULL
END
"""
"""The rows are counted, then read: either may be what takes long. Seconds are those of one row."""


def create(stack: Stack) -> None:
    with psycopg.connect(stack.database_url) as connection:
        connection.execute(_VIEW)


def pace(stack: Stack, organization: str, *, rows: int, counting: float = 0, reading: float = 0) -> str:
    with psycopg.connect(stack.database_url) as connection:
        connection.execute("INSERT INTO pace VALUES (%s, %s, %s, %s)", [organization, rows, counting, reading])
    return organization


def ask(stack: Stack, organization: str, recipients: Sequence[str] = (), **row: Any) -> str:
    asked = {"dataset": "slow", "format": "csv", "recipient_emails": json.dumps(list(recipients)), **row}
    return stack.insert(organization_id=organization, **asked)


def runs_of(stack: Stack, uid: str) -> list[dg.RunRecord]:
    """All runs of a request, the newest first."""
    with dg.DagsterInstance.from_config(str(stack.home.dagster_home)) as instance:
        return list(instance.get_run_records(dg.RunsFilter(tags={tags.REQUEST_UID: uid})))


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(0.1)
    return found


_TERMINATE = """
mutation Terminate($runIds: [String!]!, $terminatePolicy: TerminateRunPolicy) {
  terminateRuns(runIds: $runIds, terminatePolicy: $terminatePolicy) {
    ... on TerminateRunsResult { terminateRunResults { __typename } }
  }
}
"""


def terminate(ui: str, run_id: str) -> None:
    """Press Terminate on a run's page."""
    variables = {"runIds": [run_id], "terminatePolicy": "SAFE_TERMINATE"}
    body = json.dumps({"query": _TERMINATE, "variables": variables}).encode()
    request = urllib.request.Request(f"{ui}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        told = json.load(answer)
    (result,) = told["data"]["terminateRuns"]["terminateRunResults"]
    assert result == {"__typename": "TerminateRunSuccess"}, told
