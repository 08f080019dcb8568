"""A process that is canceled while rows come: what it prints last says how it ended.

``python -m export_pipeline_tests.engine.canceled URL READER WHEN``: READER is ``shared`` for SQLite through Python's
library, WHEN is ``reading`` or ``counting``.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections import deque
from contextlib import suppress
from dataclasses import replace
from types import FrameType

import sqlalchemy as sa

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.filters.tree import AllOf
from export_pipeline.source import open_snapshot
from export_pipeline.source.query import Selection, build_query
from export_pipeline.source.readers import Source

SLOW = """
name: slow
title: Slow
table: slow
tenant: organization_id
key: id
columns: [{name: id, type: integer}, {name: body, type: text}]
"""


class Canceled(Exception):
    """What the signal's handler raises, as Dagster's does."""


def main(url: str, shares_file: bool, when: str) -> None:
    """Read the rows of ``slow`` until the signal comes."""
    signal.signal(signal.SIGUSR1, _cancel)
    dataset = parse_dataset(SLOW)
    source = Source(url, statement_timeout_seconds=300, shares_file=shares_file)
    query = build_query(Selection(dataset, "acme", dataset.columns, AllOf(())), source.backend)
    if when == "reading":
        query = replace(query, count=sa.select(sa.literal_column("0")), own={})
    timer = threading.Timer(2, os.kill, [os.getpid(), signal.SIGUSR1])
    with suppress(Canceled):
        if when == "counting":
            timer.start()
        with open_snapshot(source, query) as snapshot:
            if when == "reading":
                next(snapshot.batches)
                timer.start()
            deque(snapshot.batches, maxlen=0)
        sys.stdout.write("read to its end")
        return
    sys.stdout.write("canceled")


def _cancel(_number: int, _frame: FrameType | None) -> None:
    raise Canceled


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] == "shared", sys.argv[3])
