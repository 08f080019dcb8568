"""The staging store, on a disk and on a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.filters.tree import AllOf
from export_pipeline.source import open_snapshot
from export_pipeline.source.query import Query, Selection
from export_pipeline.source.readers import Snapshot, Source
from export_pipeline.stages import filter_entities
from export_pipeline.storage.staging import Staging, unique
from export_pipeline_tests.engine import people
from export_pipeline_tests.servers.s3 import S3Bucket


@pytest.fixture(params=["disk", "s3"])
def staging(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Staging]:
    if request.param == "disk":
        yield Staging((tmp_path / "staging").as_uri())
        return
    bucket: S3Bucket = request.getfixturevalue("s3_bucket")
    yield Staging(f"s3://{bucket.name}/staging", s3_endpoint_url=bucket.endpoint)


def test_what_is_written_is_read(staging: Staging) -> None:
    with staging.create("a/1/plan.json") as sink:
        sink.write(b"{}" * 5_000_000)
    with staging.open("a/1/plan.json") as source:
        assert source.read(4) == b"{}{}"
        assert len(source.read()) == 10_000_000 - 4


def test_batches(staging: Staging) -> None:
    batches = [pa.record_batch({"n": pa.array(range(at, at + 1000))}) for at in range(0, 5000, 1000)]
    with staging.write_batches("a/1/rows.arrow") as write:
        for batch in batches:
            write(batch)
    assert list(staging.read_batches("a/1/rows.arrow")) == batches


def test_trees_and_their_deletion(staging: Staging) -> None:
    assert staging.trees() == []
    for key in ("a/1/x", "a/2/y", "b/1/z"):
        with staging.create(key) as sink:
            sink.write(b"x")
    assert sorted(staging.trees()) == ["a", "b"]
    assert sorted(staging.trees("a")) == ["1", "2"]
    assert staging.trees("c") == []
    staging.delete_tree("a/1")
    staging.delete_tree("a/1")
    with staging.open("a/2/y") as source:
        assert source.read() == b"x"
    staging.delete_tree("a")
    assert staging.trees() == ["b"]


def test_when_a_tree_was_last_written(staging: Staging) -> None:
    begun = datetime.now(UTC) - timedelta(seconds=2)  # S3 says whole seconds
    assert staging.written_at("a") is None
    with staging.create("a/1/x") as sink:
        sink.write(b"x")
    written = staging.written_at("a")
    assert written is not None
    assert begun <= written <= datetime.now(UTC) + timedelta(seconds=2)


def test_what_is_abandoned_is_gone(staging: Staging) -> None:
    with pytest.raises(TypeError), staging.create("a/1/x") as sink:
        sink.write(b"half" * 5_000_000 + None)  # type: ignore[operator]
    with pytest.raises(KeyError), staging.write_batches("a/1/y"):
        raise KeyError
    for key in ("a/1/x", "a/1/y"):
        with pytest.raises(ExportFailure) as failed, staging.open(key):
            pass
        assert failed.value.code is FailureCode.STAGING_LOST


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/passwd", ""])
def test_a_key_stays_below_the_root(tmp_path: Path, key: str) -> None:
    staging = Staging((tmp_path / "staging").as_uri())
    with pytest.raises(ValueError, match="below the root"):
        staging.delete_tree(key)


def test_a_full_disk_is_a_failure_of_staging(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    (tmp_path / "staging" / "a").mkdir(parents=True)
    (tmp_path / "staging" / "a" / "x.partial").symlink_to(full)
    staging = Staging((tmp_path / "staging").as_uri())
    with pytest.raises(ExportFailure) as failed, staging.create("a/x") as sink:
        sink.write(b"x" * 10_000_000)
    assert failed.value.code is FailureCode.STAGING_UNAVAILABLE


def test_uploads_that_nobody_ended_are_aborted_with_their_tree_or_once_they_are_old(s3_bucket: S3Bucket) -> None:
    def uploads() -> list[str]:
        return [upload["Key"] for upload in s3_bucket.uploads()]

    staging = Staging(f"s3://{s3_bucket.name}/staging", s3_endpoint_url=s3_bucket.endpoint)
    assert staging.abort_uploads(timedelta(hours=1)) == 0  # rclone answers that with an error
    for key in ("staging/a/1/x", "staging/a/10/x", "staging/b/1/x", "theirs/x"):
        s3_bucket.client.create_multipart_upload(Bucket=s3_bucket.name, Key=key)
    staging.delete_tree("a/1")
    assert uploads() == ["staging/a/10/x", "staging/b/1/x", "theirs/x"]
    assert staging.abort_uploads(timedelta(hours=1)) == 0
    assert staging.abort_uploads(-timedelta(hours=1)) == 2
    assert uploads() == ["theirs/x"]


def test_two_tries_never_share_a_key() -> None:
    assert unique("a/1") != unique("a/1")


@pytest.mark.parametrize("more", [1, -1])
def test_rows_that_are_not_as_many_as_the_snapshot_counted_are_no_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    """No database counts its own snapshot wrongly, so the count of a real one is changed."""

    @contextmanager
    def miscounted(source: Source, query: Query) -> Iterator[Snapshot]:
        with open_snapshot(source, query) as snapshot:
            yield replace(snapshot, row_count=snapshot.row_count + more)

    monkeypatch.setattr(filter_entities, "open_snapshot", miscounted)
    source = people.create(f"sqlite:///{tmp_path / 'people.db'}")
    staging = Staging((tmp_path / "staging").as_uri())
    with pytest.raises(ExportFailure) as failed:
        filter_entities.stage_rows(
            source,
            Selection(people.DATASET, "acme", people.DATASET.columns, AllOf(())),
            staging,
            "a/1",
            max_bytes=10**9,
            shard_rows=10**6,
            snapshot_taken=lambda _rows, _instant: None,
            progress=lambda _rows: None,
        )
    assert failed.value.code is FailureCode.COUNT_MISMATCH
