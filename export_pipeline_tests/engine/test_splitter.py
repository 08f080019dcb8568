"""The splitter holds a bounded number of bytes, however fat or wide the rows are."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from export_pipeline.formats.splitter import BLOCK_BYTES, BLOCK_ROWS, even_blocks

MEGABYTE = 1_000_000


@pytest.mark.parametrize(("rows", "text"), [(300, "x" * MEGABYTE), (60_000, "x" * 20), (40_000, "")])
def test_no_more_than_a_block_waits(rows: int, text: str) -> None:
    taken = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal taken
        step = 32 if len(text) == MEGABYTE else 7_000
        for at in range(0, rows, step):
            batch = pa.record_batch({"text": pa.array([text] * min(step, rows - at), pa.string())})
            taken += batch.num_rows
            yield batch

    given = 0
    for block in even_blocks(batches()):
        given += block.num_rows
        assert block.nbytes <= BLOCK_BYTES or block.num_rows == 1
        assert block.num_rows <= BLOCK_ROWS
        # A block is closed at the 256 rows at which it is weighed, and batches arrive whole.
        assert (taken - given) * len(text) <= 256 * MEGABYTE + 32 * MEGABYTE
    assert given == taken == rows


def test_blocks_do_not_depend_on_how_rows_arrive() -> None:
    table = pa.table({"text": ["x" * (n % 3_000) for n in range(40_000)]})
    shapes = [
        [block.num_rows for block in even_blocks(table.to_batches(max_chunksize=size))] for size in (1, 999, 40_000)
    ]
    assert shapes[0] == shapes[1] == shapes[2]


def test_wide_rows_come_in_shorter_blocks() -> None:
    (batch,) = pa.table({f"c{n}": pa.array([n] * 5_000, pa.int64()) for n in range(200)}).to_batches()
    assert [block.num_rows for block in even_blocks([batch])] == [2_000, 2_000, 1_000]
