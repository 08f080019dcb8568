"""Estimating an export before it runs: its rows exactly; bytes, files and seconds from a sample.

What belongs here: reading a sample and writing it to nowhere. What does not: telling it (cli).
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from export_pipeline.catalog.model import Dataset
from export_pipeline.engine.formats import open_format
from export_pipeline.engine.formats.base import NO_CEILING
from export_pipeline.engine.plan import ExportPlan, format_options, selection
from export_pipeline.engine.query import build_query
from export_pipeline.engine.readers import Source, open_snapshot
from export_pipeline.engine.readers.types import staged_schema
from export_pipeline.engine.splitter import write_files

SAMPLE_ROWS = 2_000
"""Half from each end of the key: old rows and new ones seldom look alike."""


@dataclass(frozen=True)
class Estimate:
    """What an export will come to. ``rows`` is exact at the moment it was counted; the rest is from a sample.

    ``seconds`` is the time to read and write on this machine, without waiting, upload and mail.
    """

    rows: int
    bytes: int
    files: int
    seconds: float


def estimate(plan: ExportPlan, catalog: Mapping[str, Dataset], source: Source) -> Estimate:
    """Count the rows of a plan and weigh a sample of them.

    Raises:
        ExportFailure: whatever reading and writing raise.
    """
    rows, reading_seconds, sample = _sample(plan, catalog, source)
    dataset = catalog[plan.dataset]
    empty = _written(plan, dataset, sample.schema.empty_table())
    if not sample.num_rows:
        return Estimate(rows, empty, 1, reading_seconds)
    _written(plan, dataset, sample)  # so that the imports of the first time are not taken for work
    started = time.perf_counter()
    size = _written(plan, dataset, sample)
    writing_seconds = time.perf_counter() - started
    share = rows / sample.num_rows
    total = empty + round((size - empty) * share)
    files = max(1, math.ceil(total / plan.max_bytes))
    return Estimate(rows, total + (files - 1) * empty, files, (reading_seconds + writing_seconds) * share)


def _sample(plan: ExportPlan, catalog: Mapping[str, Dataset], source: Source) -> tuple[int, float, pa.Table]:
    """All rows' number, the seconds that the sample took to read, and the sample; every row, if they are few."""
    chosen = selection(plan, catalog)
    first = build_query(chosen, source.backend, limit=SAMPLE_ROWS // 2)
    last = build_query(chosen, source.backend, limit=SAMPLE_ROWS // 2, last=True)
    schema = staged_schema(first.columns)
    seconds = 0.0
    batches: list[pa.RecordBatch] = []
    rows = 0
    for query in (first, last):
        with open_snapshot(source, query) as snapshot:
            rows = snapshot.row_count
            started = time.perf_counter()
            batches += list(snapshot.batches)
            seconds += time.perf_counter() - started
        if rows <= SAMPLE_ROWS // 2:
            break
    return rows, seconds, pa.Table.from_batches(batches, schema=schema)


def _written(plan: ExportPlan, dataset: Dataset, sample: pa.Table) -> int:
    """The bytes of one file with these rows."""
    options = replace(format_options(plan, dataset), max_bytes=NO_CEILING)
    written = write_files(
        sample.to_batches(),
        open_format(plan.format, options),
        lambda _ordinal: io.BytesIO(),
        key=dataset.key,
        max_bytes=NO_CEILING,
        progress=lambda _rows: None,
    )
    return sum(file.bytes for file in written)
