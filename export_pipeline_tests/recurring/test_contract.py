"""What applications read and write: windows of requests, and the page that tells of recurring exports."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa

from export_pipeline.database.tables import recurring_exports
from export_pipeline.failures import ExportFailure
from export_pipeline.requests.models import RequestTemplate, insert_request
from export_pipeline.requests.validation.rows import date_range_of
from export_pipeline_tests.engine.people import DATASET
from export_pipeline_tests.recurring import simulate
from export_pipeline_tests.recurring.rows import TEMPLATE, at, made

PAGE = (Path(__file__).parents[2] / "docs" / "recurring.md").read_text()
BEGIN, END = at("2 09:00"), at("2 10:00")
MADRID = ZoneInfo("Europe/Madrid")


def date_range(database: sa.Engine, dataset: Any = DATASET, **asked: Any) -> tuple[datetime | None, datetime | None]:
    with database.begin() as connection:
        insert_request(connection, **{**TEMPLATE, "organization_id": "acme", **asked})
    return date_range_of(made(database)[-1], dataset, MADRID)


def test_a_window_is_instants_whatever_the_organizations_zone(database: sa.Engine) -> None:
    for begin, end in ((BEGIN, END), (None, END), (BEGIN, None)):
        assert date_range(database, window_from=begin, window_before=end) == (begin, end)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"window_from": END, "window_before": BEGIN}, "window_before: must be after window_from"),
    ({"window_from": BEGIN, "window_before": BEGIN}, "window_before: must be after window_from"),
    ({"window_from": BEGIN, "start_date": datetime.fromisoformat("2026-03-02")}, "window_from: cannot be given"),
    ({"window_before": END, "end_date": datetime.fromisoformat("2026-03-02")}, "window_from: cannot be given"),
]


@pytest.mark.parametrize(("asked", "words"), WRONG, ids=str)
def test_a_window_that_cannot_be_meant_is_refused(database: sa.Engine, asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportFailure, match=f"invalid_date_range: {words}"):
        date_range(database, **asked)


def test_a_dataset_without_a_creation_time_has_no_windows(database: sa.Engine) -> None:
    timeless = DATASET.model_copy(update={"created_at": None})
    with pytest.raises(ExportFailure, match="dataset people has no creation time"):
        date_range(database, timeless, window_before=END)


def test_the_page_names_every_column_and_what_a_template_may_set() -> None:
    section = PAGE.split("## Columns\n", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `([a-z_]+)`", section, re.MULTILINE)) == set(recurring_exports.c.keys())
    settable = PAGE.split("`request` may set ", 1)[1].split(", as in", 1)[0]
    assert set(re.findall(r"`([a-z_]+)`", settable)) == set(RequestTemplate.model_fields)


@pytest.mark.slow
def test_the_pages_figures_are_of_this_simulation() -> None:
    figures = PAGE.split("## Simulated years", 1)[1]
    rules = len(list(simulate.all_rules("UTC", "0 0 * * *")))
    sizes = (simulate.YEARS, len(simulate.ZONES), len(simulate.CRONS), rules)
    assert "{} years x {} zones x {} crons x {} sets of rules".format(*sizes) in figures
    assert f"{sizes[1] * sizes[2] * sizes[3]} recurring exports" in figures
    for zone in ("Africa/Casablanca", "Asia/Kolkata"):
        (told,) = re.findall(rf"^{zone} +(\d+)", figures, re.MULTILINE)
        assert int(told) == sum(simulate.count_fire_times(zone, cron) for cron in simulate.CRONS)
