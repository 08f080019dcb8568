"""README command one, as a new user runs it: it tells its story, ends by itself, and leaves no process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

COMMAND = Path(sys.executable).with_name("export-pipeline")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_demo_ends_by_itself_with_every_file_delivered(tmp_path: Path) -> None:
    home = tmp_path / "demo"
    foreign = ("EXPORT_", "AWS_", "DAGSTER_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    command = [str(COMMAND), "demo", "--home", str(home), "--rows", "20000"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=220)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.count("read back and verified") == 5
    assert "unknown_column" in shown.stdout
    assert shown.stdout.count("curl -o ") >= 5
    assert len(list((home / "outbox").glob("*.eml"))) == 7
    left = [process.info["cmdline"] for process in psutil.process_iter(["cmdline"]) if str(home) in str(process.info)]
    assert left == []


def test_the_demo_touches_no_directory_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    command = [str(COMMAND), "demo", "--home", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert shown.returncode == 1
    assert "holds no demo; choose another --home" in shown.stderr
    assert (tmp_path / "precious").exists()
