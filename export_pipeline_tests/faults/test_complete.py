"""Complete or failed: a file is exactly one instant of the source, or there is none."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from export_pipeline.storage.staging import Staging
from export_pipeline_tests.acceptance.pipeline import Database, LocalShelf, Pipeline, Result, S3Shelf, open_pipeline
from export_pipeline_tests.contract import format_readers
from export_pipeline_tests.faults import moving_data
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.moving_data import COLUMNS, ORGANIZATION
from export_pipeline_tests.servers.postgres import PostgresServer

SHARD_ROWS = 1_500
READERS: dict[str, Callable[[bytes], format_readers.Rows]] = {
    "csv": format_readers.csv_module,
    "json": format_readers.json_array,
    "ndjson": lambda data: format_readers.ndjson(format_readers.gunzip_one_member(data)),
    "xlsx": format_readers.xlsx_calamine,
    "parquet": format_readers.parquet_arrow,
}
WRITERS = "writers insert, update, move and delete while an export reads"
SHARDED: dict[str, Any] = {"max_file_size_mb": 1}
"""So small a file that the rows are cut into shards; without it there is one shard and one file."""


@pytest.fixture(params=["postgresql", "sqlite", "sqlite-of-its-own"])
def moving(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_server: PostgresServer
) -> Iterator[tuple[Database, Pipeline]]:
    """The moving table and an installation that exports it."""
    shelf = LocalShelf(tmp_path / "store")
    settings = {
        "EXPORT_CATALOG": str(moving_data.write_catalog(tmp_path / "catalog")),
        "EXPORT_SHARD_ROWS": str(SHARD_ROWS),
        "EXPORT_HEARTBEAT_SECONDS": "0.5",
    }
    if request.param == "postgresql":
        with postgres_server.fresh_database() as url:
            source = Database(url)
            moving_data.create(source)
            with open_pipeline(migrated(source), shelf, tmp_path, **settings) as pipeline:
                yield source, pipeline
        return
    source = Database(f"sqlite:///{tmp_path / 'source.db'}")
    requests = source if request.param == "sqlite" else Database(f"sqlite:///{tmp_path / 'requests.db'}")
    settings["EXPORT_SOURCE_URL"] = source.url
    moving_data.create(source)
    with open_pipeline(migrated(requests), shelf, tmp_path, **settings) as pipeline:
        yield source, pipeline


def migrated(database: Database) -> Database:
    from export_pipeline.database.engine import create_engine
    from export_pipeline.database.migrate import upgrade

    engine = create_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
    upgrade(engine)
    engine.dispose()
    return database


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("by_id", "csv", SHARDED),
    ("by_id", "xlsx", SHARDED),
    ("by_id", "json", {}),
    ("by_tie", "ndjson", SHARDED),
    ("by_tie", "parquet", {}),
    ("by_nothing", "parquet", SHARDED),
]


def test_a_file_is_one_instant_while_others_write(
    moving: tuple[Database, Pipeline], chance: random.Random, tally: Tally
) -> None:
    source, pipeline = moving
    wrong = []
    with moving_data.writers(source, chance):
        for dataset, file_format, asked in CASES:
            result = pipeline.export(
                organization_id=ORGANIZATION, dataset=dataset, format=file_format, columns=COLUMNS, **asked
            )
            assert (result.state.status, result.state.error_code) == ("completed", None)
            assert len(result.files) >= 3 if asked else len(result.files) == 1
            lost, doubled = compare(source, rows_of(result, file_format))
            tally(WRITERS, tries=1, survived=int(not lost + doubled), lost=lost, doubled=doubled)
            if lost or doubled:
                wrong.append((dataset, file_format, asked, lost, doubled))
    assert wrong == []


def rows_of(result: Result, file_format: str) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for data in result.files:
        header, read = READERS[file_format](data)
        assert header == COLUMNS
        rows += [(int(key), owner, int(amount), int(version)) for key, owner, amount, version in read]
    return rows


def compare(source: Database, rows: list[tuple[Any, ...]]) -> tuple[int, int]:
    """How many rows of the instant that the file shows are missing, and how many are there that should not be."""
    versions = {row[3] for row in rows}
    assert len(versions) == 1, f"rows of {len(versions)} instants are in one file"
    (version,) = versions
    assert 0 < version < moving_data.version(source), "nobody wrote while the export ran"
    expected, found = moving_data.rows_at(source, version), Counter(row[:3] for row in rows)
    return (expected - found).total(), (found - expected).total()


Damage = Callable[["Damaged"], None]


class Damaged(Pipeline):
    """An installation to which something is done once a step has ended."""

    def suffer(self, step: str, damage: Damage, **row: Any) -> Result:
        done = list[str]()
        self._before, self._stored_before = set(self.staged()), set(self.shelf.keys())

        @dg.success_hook(name=f"after_{step}")
        def strike(context: dg.HookContext) -> None:
            if context.op.name == step and not done:
                damage(self)
                done.append(step)

        whole = self._job
        self._job = whole.with_hooks({strike})
        try:
            result = self.export(organization_id=ORGANIZATION, dataset="by_id", **row)
        finally:
            self._job = whole
        assert done, f"the run never came past {step}"
        return result

    def _delivered(self, state: Any) -> tuple[dict[str, Any] | None, list[bytes]]:
        """Files that nobody is told of may stay for a re-execution: what must not be is a manifest or a row."""
        if state.manifest_key is None:
            assert self.database.query("SELECT key FROM export_files WHERE request_id = ?", [state.id]) == []
            assert [key for key in self.shelf.keys() if state.uid in key and "manifest" in key] == []  # noqa: SIM118 - no mapping
            return None, []
        return super()._delivered(state)

    def one_staged(self, suffix: str) -> Path:
        """The last staged rows (``.arrow``) or file (no suffix)."""
        found = [path for path in self.staged() if path.suffix == suffix and path not in self._before]
        return max(found)

    def one_stored(self) -> str:
        """The last file of the export under way."""
        return max(set(self.shelf.keys()) - self._stored_before)


@pytest.fixture(params=["s3", "directory"])
def damaged(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Damaged]:
    shelf = S3Shelf(request.getfixturevalue("s3_bucket")) if request.param == "s3" else LocalShelf(tmp_path / "store")
    source = Database(f"sqlite:///{tmp_path / 'source.db'}")
    moving_data.create(source)
    migrated(source)
    settings = {
        "EXPORT_CATALOG": str(moving_data.write_catalog(tmp_path / "catalog")),
        "EXPORT_SHARD_ROWS": str(SHARD_ROWS),
    }
    with dg.DagsterInstance.ephemeral() as instance:
        pipeline = Damaged(source, shelf, tmp_path, instance, settings)
        yield pipeline
        pipeline.close()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x20
    path.write_bytes(data)


def drop_a_row(pipeline: Damaged) -> None:
    """The rows are well-formed, and one fewer: what a writer that lost one would leave."""
    path = pipeline.one_staged(".arrow")
    staging, key = Staging(path.parents[1].as_uri()), f"{path.parent.name}/{path.name}"
    first, *others = staging.read_batches(key)
    with staging.write_batches(key) as write:
        for batch in (first.slice(1), *others):
            write(batch)


def stored(pipeline: Damaged, change: Callable[[bytes], bytes | None]) -> None:
    """Put something else in the place of a delivered file, or nothing."""
    key = pipeline.one_stored()
    data = change(pipeline.shelf.read(key))
    if isinstance(pipeline.shelf, LocalShelf):
        path = pipeline.shelf.directory / key
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        return
    assert isinstance(pipeline.shelf, S3Shelf)
    bucket = pipeline.shelf.bucket
    at = {"Bucket": bucket.name, "Key": f"exports/{key}"}
    if data is None:
        bucket.client.delete_object(**at)
    else:
        bucket.client.put_object(**at, Body=data)


DAMAGES: dict[str, tuple[str, Damage, set[str]]] = {
    "staged rows are cut short": (
        "filter_entities",
        lambda pipeline: shorten(pipeline.one_staged(".arrow")),
        {"checksum_mismatch"},
    ),
    "staged rows lose a row": (
        "filter_entities",
        drop_a_row,
        {"count_mismatch"},
    ),
    "a byte of the staged rows flips": (
        "filter_entities",
        lambda pipeline: flip(pipeline.one_staged(".arrow")),
        {"checksum_mismatch"},
    ),
    "staged rows are gone": (
        "filter_entities",
        lambda pipeline: pipeline.one_staged(".arrow").unlink(),
        {"staging_lost"},
    ),
    "a staged file is cut short": (
        "serialize",
        lambda pipeline: shorten(pipeline.one_staged("")),
        {"checksum_mismatch"},
    ),
    "a byte of a staged file flips": (
        "serialize",
        lambda pipeline: flip(pipeline.one_staged("")),
        {"checksum_mismatch"},
    ),
    "a delivered file is cut short before it is published": (
        "upload",
        lambda pipeline: stored(pipeline, lambda data: data[:-1]),
        {"checksum_mismatch"},
    ),
    "a delivered file is altered before it is published": (
        "upload",
        lambda pipeline: stored(pipeline, lambda data: data.replace(b"owner", b"0wner", 1)),
        {"checksum_mismatch"},
    ),
    "a delivered file is gone before it is published": (
        "upload",
        lambda pipeline: stored(pipeline, lambda _: None),
        {"checksum_mismatch"},
    ),
}


def test_what_is_damaged_on_its_way_fails_and_nobody_is_told_of_a_file(damaged: Damaged, tally: Tally) -> None:
    wrong = []
    for fault, (step, damage, codes) in DAMAGES.items():
        for asked in (SHARDED, {}):
            result = damaged.suffer(step, damage, format="csv", columns=COLUMNS, **asked)
            failed = result.state.status == "failed" and result.state.error_code in codes
            clean = failed and result.manifest is None and not result.mails and not result.retries
            tally(fault, tries=1, survived=int(clean), lost=int(not clean))
            if not clean:
                wrong.append((fault, asked, result.state.status, result.state.error_code, len(result.mails)))
    assert wrong == []
