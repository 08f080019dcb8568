"""What a request's run is tagged with so that Dagster's queue keeps small exports from waiting behind large ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml

from export_pipeline.definitions import build_definitions
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.sensors import ROWS_PER_TICK
from export_pipeline.orchestration.sensors.requests import CLAIMED_PER_ORGANIZATION, FULL, export_requests
from export_pipeline.requests import queue
from export_pipeline_tests.orchestration.conftest import Pipeline
from export_pipeline_tests.orchestration.test_sensors import evaluate

LARGE = 2_000_000


def classes(pipeline: Pipeline) -> list[str]:
    return [request.tags[tags.SIZE_CLASS] for request in evaluate(pipeline, export_requests).run_requests]


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ({}, "large"),
        ({"filters": {"score": {"gt": 1}}}, "small"),
        ({"organization_id": "globex"}, "small"),
        ({"status": "failed"}, "small"),
        ({"row_count": 5}, "small"),
    ],
)
def test_a_question_that_was_large_before_is_large_again(
    pipeline: Pipeline, before: dict[str, Any], expected: str
) -> None:
    told = {"status": "completed", "row_count": LARGE} | {
        name: value for name, value in before.items() if name in ("status", "row_count")
    }
    asked = {name: value for name, value in before.items() if name not in told}
    pipeline.update(pipeline.ask(**asked), **told)
    pipeline.ask()
    assert classes(pipeline) == [expected]


def test_a_new_attempt_knows_what_the_one_before_counted(pipeline: Pipeline) -> None:
    pipeline.update(pipeline.ask(), rows_total=LARGE)
    assert classes(pipeline) == ["large"]


def test_exports_start_as_small_ones_if_their_size_cannot_be_looked_up(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are claimed by then: a tick that fails would start none of them, and never say so."""

    def fails(*_arguments: Any, **_options: Any) -> Any:
        raise sa.exc.DBAPIError("SELECT", {}, Exception("canceling statement due to statement timeout"))

    monkeypatch.setattr(queue, "expected_rows", fails)
    pipeline.update(pipeline.ask(), rows_total=LARGE)
    assert classes(pipeline) == ["small"]


def test_a_run_is_large_once_its_rows_are_counted(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPORT_LARGE_ROWS", "1")
    result, state = pipeline.export()
    assert state.status == "completed"
    (run,) = pipeline.instance.get_runs()
    assert (result.run_id, run.tags[tags.SIZE_CLASS]) == (run.run_id, "large")


def test_dagster_yaml_limits_the_class_by_its_tag() -> None:
    project = Path(__file__).parents[2] / "dagster.yaml"
    limits = yaml.safe_load(project.read_text())["concurrency"]["runs"]["tag_concurrency_limits"]
    assert {"key": tags.SIZE_CLASS, "value": tags.LARGE, "limit": 2} in limits


def test_a_flood_waits_in_the_table_and_goes_on_as_its_runs_begin(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pipeline.database.begin() as connection:
        for _ in range(CLAIMED_PER_ORGANIZATION + ROWS_PER_TICK):
            connection.exec_driver_sql(
                "INSERT INTO export_requests (organization_id, dataset, format, recipient_emails) "
                "VALUES ('acme', 'people', 'csv', '[]')"
            )
    claimed = [request for _ in range(2) for request in evaluate(pipeline, export_requests).run_requests]
    assert len(claimed) == CLAIMED_PER_ORGANIZATION
    monkeypatch.setenv("EXPORT_PICKUP_WAIT_SECONDS", "0.5")
    looks: list[bool] = []
    look = queue.is_any_claimable
    monkeypatch.setattr(queue, "is_any_claimable", lambda *a, **o: looks.append(look(*a, **o)) or looks[-1])
    told = evaluate(replace(pipeline, definitions=build_definitions()), export_requests).skip_message
    assert (told, set(looks)) == (FULL, {False})  # it waits as long as a tick without any request
    other = pipeline.ask(organization_id="globex")
    (asked,) = evaluate(pipeline, export_requests).run_requests
    assert asked.run_key.startswith(f"{other}:1:")
    pipeline.execute("UPDATE export_requests SET status = 'running' WHERE id <= 7")
    assert len(evaluate(pipeline, export_requests).run_requests) == 7


def test_claims_without_a_bound_take_what_there_is(pipeline: Pipeline) -> None:
    for _ in range(3):
        pipeline.ask()
    with pipeline.database.begin() as connection:
        assert len(queue.claim(connection, limit=10)) == 3
