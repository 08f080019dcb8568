"""No delivered object is larger than asked for, whatever the format, and the parts together are the rows."""

from __future__ import annotations

import csv
import io
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from export_pipeline_tests.acceptance.pipeline import Database, LocalShelf, Pipeline, Result, open_pipeline
from export_pipeline_tests.acceptance.source import ORGANIZATION, load_one_organization
from export_pipeline_tests.contract import format_readers as readers

ROWS = 100_000
LIMIT = 1_000_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Database:
    url = f"sqlite:///{tmp_path_factory.mktemp('large')}/application.db"
    load_one_organization(url, ROWS)
    return Database(url)


@pytest.fixture(scope="module")
def large(source: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    directory = tmp_path_factory.mktemp("large-installation")
    with open_pipeline(source, LocalShelf(directory / "store"), directory) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def ids(source: Database) -> list[int]:
    found = source.query("SELECT id FROM contacts WHERE organization_id = ? ORDER BY id", [ORGANIZATION])
    assert len(found) == ROWS
    return [row[0] for row in found]


def csv_ids(data: bytes) -> list[int]:
    header, *rows = csv.reader(io.StringIO(data.decode(), newline=""), strict=True)
    assert header[0] == "id"
    return [int(row[0]) for row in rows]


def json_ids(data: bytes) -> list[int]:
    return [item["id"] for item in json.loads(data)]


def ndjson_ids(data: bytes) -> list[int]:
    return [json.loads(line)["id"] for line in data.decode().removesuffix("\n").split("\n")]


def xlsx_ids(data: bytes) -> list[int]:
    header, rows = readers.xlsx_calamine(data)
    assert header[0] == "id"
    return [int(row[0]) for row in rows]


def parquet_ids(data: bytes) -> list[int]:
    found: list[int] = pq.read_table(io.BytesIO(data), columns=["id"])["id"].to_pylist()
    return found


IDS: Mapping[str, Callable[[bytes], list[int]]] = {
    "csv": csv_ids,
    "json": json_ids,
    "ndjson": ndjson_ids,
    "xlsx": xlsx_ids,
    "parquet": parquet_ids,
}
FEW = ["id", "name", "email", "city", "score", "created_at"]
"""Enough for several workbooks; reading all cells back is what takes the time."""


def check(result: Result, file_format: str, ids: list[int], *, gzipped: bool, least_parts: int) -> None:
    assert (result.state.status, result.state.message) == ("completed", None)
    assert max(map(len, result.files)) <= LIMIT
    assert len(result.files) >= least_parts
    assert result.manifest is not None
    names = [file["name"] for file in result.manifest["files"]]
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    contents = [readers.gunzip_one_member(data) if gzipped else data for data in result.files]
    found = [IDS[file_format](data) for data in contents]
    assert [len(part) for part in found] == [file["rows"] for file in result.manifest["files"]]
    assert [one for part in found for one in part] == ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file_format", "compression", "columns", "least_parts"),
    [
        ("csv", "none", None, 30),
        ("csv", "gzip", None, 12),
        ("json", "none", FEW, 12),
        ("json", "gzip", None, 12),
        ("ndjson", None, None, 12),
        ("xlsx", None, FEW, 4),
        ("parquet", None, None, 6),
    ],
)
def test_no_part_is_larger_and_no_row_is_lost(
    large: Pipeline, ids: list[int], file_format: str, compression: str | None, columns: Any, least_parts: int
) -> None:
    result = large.export(format=file_format, compression=compression, columns=columns, max_file_size_mb=1)
    gzipped = compression == "gzip" or (file_format == "ndjson" and compression is None)
    check(result, file_format, ids, gzipped=gzipped, least_parts=least_parts)
    # The limit is used: a reader gets no more files than needed.
    assert min(map(len, result.files[:-1])) > LIMIT * 0.8


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_shards_written_side_by_side_keep_the_order(
    source: Database, ids: list[int], tmp_path: Path, file_format: str
) -> None:
    with open_pipeline(source, LocalShelf(tmp_path / "store"), tmp_path, EXPORT_SHARD_ROWS="30000") as pipeline:
        result = pipeline.export(format=file_format, max_file_size_mb=1)
    assert len([event for event in result.run.all_node_events if event.is_step_success]) > 4 + 2 * 3
    check(result, file_format, ids, gzipped=False, least_parts=8)


def test_below_the_limit_there_is_one_file_without_a_part_number(large: Pipeline, ids: list[int]) -> None:
    result = large.export(format="csv", columns=["id"], max_file_size_mb=1)
    check(result, "csv", ids, gzipped=False, least_parts=1)
    assert result.manifest is not None
    (file,) = result.manifest["files"]
    assert "part" not in file["name"]


@pytest.mark.parametrize("file_format", IDS)
def test_a_row_over_the_limit_fails_and_is_named(large: Pipeline, source: Database, file_format: str) -> None:
    organization = f"00000000-0000-4000-8000-{secrets.token_hex(6)}"
    key = source.query("SELECT max(id) FROM contacts")[0][0] + 1
    # Random, so that no compression makes it small enough.
    texts = {column: secrets.token_hex(800_000) for column in ("name", "location", "city")}
    fixed = {"id": key, "contact_id": organization, "organization_id": organization, "email": "secret@example.com"}
    times = {"created_at": "2024-01-01 00:00:00.000000", "updated_at": "2024-01-01 00:00:00.000000"}
    source.insert("contacts", {**fixed, **texts, **times})
    result = large.export(format=file_format, organization_id=organization, max_file_size_mb=1)
    if file_format == "xlsx":
        assert result.state.status == "completed"
        assert result.manifest is not None
        assert result.manifest["counters"]["cut_cells"] == 3
        return
    assert (result.state.status, result.state.error_code) == ("failed", "row_too_large")
    assert str(key) in str(result.state.message)
    assert "secret" not in str(result.state.message)
    assert result.files == []
