"""A full disk under staging and under a store directory: a reason on the row, nothing half-written, room given back.

The disk is a tmpfs. Where none can be mounted, the tests take a limit on the size of files instead, which fails
at the same calls, with EFBIG in ENOSPC's place.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from export_pipeline.cli import cli
from export_pipeline.orchestration import execution
from export_pipeline_tests.faults.conftest import Tally
from export_pipeline_tests.faults.installation import ROWS, Installation, judged, open_installation
from export_pipeline_tests.faults.supervisor import wait_until
from export_pipeline_tests.servers.postgres import PostgresServer
from export_pipeline_tests.servers.s3 import S3Server

TRIES = 1 + execution.MAX_RETRIES


@pytest.fixture(scope="module")
def opened(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    with open_installation(postgres_server, s3_server, tmp_path_factory.mktemp("disk")) as installation:
        yield installation


@pytest.fixture
def installation(opened: Installation) -> Installation:
    opened.calm()
    return opened


@dataclass
class Disk:
    """A directory with so much room."""

    path: Path
    mounted: bool = False

    def room(self, size: int) -> None:
        if self.mounted:
            assert _run("mount", "-o", f"remount,size={size}", str(self.path))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def files(self) -> list[Path]:
        return [path for path in self.path.rglob("*") if path.is_file()]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    disk.path.mkdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    disk.mounted = os.geteuid() == 0 and _run("mount", "-t", "tmpfs", "tmpfs", str(disk.path))
    try:
        yield disk
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        if disk.mounted:
            # Busy once, on a loaded machine, right after the test; a file that stays open still fails here.
            try:
                wait_until(lambda: _run("umount", str(disk.path)), 30)
            except BaseException:
                _run("umount", "--lazy", str(disk.path))  # a mount that stays is in the way of every later test run
                raise


def _run(*command: str) -> bool:
    program = shutil.which(command[0])
    return program is not None and not subprocess.run(command, capture_output=True, check=False).returncode


ROOM = 64 << 20


@dataclass(frozen=True)
class Case:
    """Where the disk is full, and which step notices."""

    variable: str
    room: int
    max_file_size_mb: int
    step: str
    code: str


CASES = [
    Case("EXPORT_STAGING_URL", 2 << 20, 5000, "filter_entities", "staging_unavailable"),
    Case("EXPORT_STAGING_URL", 2 << 20, 1, "filter_entities", "staging_unavailable"),
    Case("EXPORT_STAGING_URL", 8 << 20, 5000, "serialize", "staging_unavailable"),
    Case("EXPORT_STAGING_URL", 8 << 20, 1, "serialize", "staging_unavailable"),
    Case("EXPORT_STORE_URL", 8 << 20, 5000, "upload", "store_unavailable"),
]
"""The rows are staged in 2.7 MB, the file has 20 MB; with a limit of 1 MB there are several shards of several files."""


@pytest.mark.parametrize("case", CASES, ids=[f"{case.step}, files of {case.max_file_size_mb} MB" for case in CASES])
def test_a_full_disk_postpones_the_request_and_has_its_room_back(
    installation: Installation, tally: Tally, monkeypatch: pytest.MonkeyPatch, disk: Disk, case: Case
) -> None:
    monkeypatch.setenv("EXPORT_SHARD_ROWS", "20000")
    monkeypatch.setenv(case.variable, disk.path.as_uri())
    disk.room(case.room)
    with judged(tally, f"disk full under {case.variable}", installation):
        uid, run = installation.export(organization_id="large", max_file_size_mb=case.max_file_size_mb)
        assert installation.tries(run)[case.step] >= TRIES
        installation.assert_postponed(uid, case.code)
        assert "free space" in installation.log(run)
        assert [path for path in disk.files() if uid in str(path)] == []
        disk.room(ROOM)
        assert installation.launch_again(uid).is_success
        assert installation.mailed() == ["a@x.io"]
        checked = CliRunner().invoke(cli, ["verify", uid], catch_exceptions=False)
        assert checked.exit_code == 0, checked.output
        assert installation.row(uid)["row_count"] == ROWS["large"]


def test_a_full_disk_under_one_export_does_not_stop_the_next(installation: Installation, disk: Disk) -> None:
    """What the failed one left must not keep a smaller one from being served."""
    disk.room(2 << 20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EXPORT_STAGING_URL", disk.path.as_uri())
        patch.setenv("EXPORT_SHARD_ROWS", "20000")
        failed, _ = installation.export(organization_id="large", max_file_size_mb=1, notify_email=False)
        assert installation.row(failed)["error_code"] == "staging_unavailable"
        served, _ = installation.export()
    installation.assert_delivered(served)
    assert installation.mailed() == ["a@x.io"]
