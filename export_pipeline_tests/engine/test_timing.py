"""The seconds of an export's parts: they add up to the work, and each is counted where it is spent."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from export_pipeline.catalog.types import FORMATS, ColumnType, OutputColumn
from export_pipeline.formats import open_format
from export_pipeline.formats.base import FormatOptions
from export_pipeline.formats.splitter import write_files
from export_pipeline.storage.staging import Staging
from export_pipeline.timing import StageSeconds, Timer
from export_pipeline_tests.adversarial import generate_contacts


def test_the_slowest_part_is_what_bounds_an_export() -> None:
    one = StageSeconds(read=1.0, stage=0.5, serialize=0.75)
    both = one + StageSeconds(serialize=0.75, compress=0.1, upload=0.2)
    assert both == StageSeconds(read=1.0, stage=0.5, serialize=1.5, compress=0.1, upload=0.2)
    assert (one.bound_by, both.bound_by) == ("read", "serialize")


def test_a_timer_counts_the_making_of_items_and_not_their_use() -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.05)
            yield number

    timer, began = Timer(), time.perf_counter()
    for _ in timer.each(slow()):
        time.sleep(0.1)
    assert 0.15 <= timer.seconds <= time.perf_counter() - began - 0.3


@pytest.mark.parametrize("file_format", FORMATS)
def test_deflate_is_counted_apart_from_the_rest_of_writing(file_format: str, tmp_path: Path) -> None:
    (batch,) = generate_contacts(20_000, 1)
    names = ("id", "email", "name", "location")
    types = (ColumnType.INTEGER, ColumnType.TEXT, ColumnType.TEXT, ColumnType.TEXT)
    columns = tuple(OutputColumn(name, name, kind) for name, kind in zip(names, types, strict=True))
    gzip = file_format in {"csv", "json", "ndjson"}
    options = FormatOptions(columns, 10**9, compression="gzip" if gzip else "none")
    fmt, staging, whole = open_format(file_format, options), Staging(tmp_path.as_uri()), Timer()
    with whole:
        (written,) = write_files(
            [batch], fmt, lambda ordinal: staging.create(f"files/{ordinal}"), key="id", max_bytes=10**9, progress=id
        )
    assert written.rows == 20_000
    if file_format == "parquet":
        assert fmt.packing.seconds == 0
    else:
        assert 0 < fmt.packing.seconds < whole.seconds
