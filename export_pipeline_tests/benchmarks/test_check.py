"""What is counted in delivered files, in every format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pytest

from export_pipeline.catalog.loader import parse_dataset
from export_pipeline.catalog.types import OutputColumn
from export_pipeline.formats import open_format
from export_pipeline.formats.base import FormatOptions
from export_pipeline.formats.splitter import write_files
from export_pipeline.storage.batches import ARROW_TYPES
from export_pipeline_tests.benchmarks.check import contents
from export_pipeline_tests.benchmarks.tables import CONTACT_COLUMNS, BenchTable, contacts, fat, wide
from export_pipeline_tests.benchmarks.works import FORMATS


def write(table: BenchTable, file_format: str, directory: Path, max_bytes: int = 10**9) -> list[Path]:
    dataset = parse_dataset(table.declaration)
    columns = tuple(OutputColumn(column.name, column.name, column.type) for column in dataset.columns)
    options = FormatOptions(columns, max_bytes, compression="gzip" if file_format.endswith(".gz") else "none")
    schema = pa.schema([(column.name, ARROW_TYPES[column.type]) for column in columns])

    @contextmanager
    def create(ordinal: int) -> Iterator[BinaryIO]:
        with (directory / f"{ordinal:03d}").open("wb") as file:
            yield file

    batches = [batch.select(schema.names).cast(schema) for batch in table.batches()]
    fmt = open_format(file_format.removesuffix(".gz"), options)
    list(write_files(batches, fmt, create, key="id", max_bytes=max_bytes, progress=lambda _: None))
    return sorted(directory.iterdir())


@pytest.mark.parametrize("file_format", FORMATS)
def test_rows_and_columns_of_several_files_are_counted(file_format: str, tmp_path: Path) -> None:
    # The largest row has more than 100 kB as text.
    limit = 400_000 if file_format in {"csv", "json"} else 100_000
    files = write(contacts(3_000), file_format, tmp_path, max_bytes=limit)
    assert len(files) > 1
    assert contents(files, file_format) == (3_000, {len(CONTACT_COLUMNS)})
    assert contents(files[1:], file_format)[0] < 3_000


@pytest.mark.parametrize("table", [wide(40), fat(30)], ids=lambda table: table.shape)
def test_odd_shapes_are_counted(table: BenchTable, tmp_path: Path) -> None:
    columns = {"wide": 200, "fat": 2}[table.shape]
    assert contents(write(table, "csv", tmp_path), "csv") == (table.rows, {columns})


def test_columns_that_files_do_not_share_are_seen(tmp_path: Path) -> None:
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    one.write_text('a,b\n1,"x\ny"\n')
    other.write_text("a\n2\n3\n")
    assert contents([one, other], "csv") == (3, {1, 2})
