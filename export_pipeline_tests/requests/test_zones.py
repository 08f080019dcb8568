"""Time zones: what is taken means the same on every machine, and can be written."""

from __future__ import annotations

import os
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from export_pipeline.failures import ExportFailure, FailureCode, checked_zone
from export_pipeline.scheduling.cron import checked_schedule


def names_that_python_opens() -> Iterator[str]:
    """Every file of the machine's zones, whatever it is."""
    for root in zoneinfo.TZPATH:
        for directory, _, files in os.walk(root):
            for file in files:
                name = Path(directory, file).relative_to(root).as_posix()
                try:
                    zoneinfo.ZoneInfo(name)
                except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
                    continue
                yield name


def test_exactly_the_zones_that_files_can_be_written_in_are_taken() -> None:
    instants = pl.Series([datetime(2026, 1, 1, tzinfo=UTC)])
    opened = set(names_that_python_opens()) | zoneinfo.available_timezones()
    assert len(opened) > 400
    for name in sorted(opened):
        try:
            checked_zone(name, "time_zone")
        except ExportFailure:
            assert name.startswith(("posix/", "right/")) or name in ("localtime", "posixrules", "Factory"), name
        else:
            assert instants.dt.convert_time_zone(name).dtype == pl.Datetime("us", name)


@pytest.mark.parametrize(
    "name", ["localtime", "posixrules", "Factory", "posix/UTC", "right/UTC", "../UTC", "/etc/localtime", "Mars", ""]
)
def test_what_is_no_zone_is_refused_wherever_one_is_named(name: str) -> None:
    for check in (lambda: checked_zone(name, "time_zone"), lambda: checked_schedule("0 6 * * *", name)):
        with pytest.raises(ExportFailure, match=r"time_zone: .* is not an IANA time zone") as refused:
            check()
        assert refused.value.code is FailureCode.INVALID_OPTION
