"""Generated documentation is what the code says today."""

from __future__ import annotations

import subprocess
import sys


def test_the_generated_pages_are_up_to_date() -> None:
    # In a process of its own: click keeps the help option that a command was first asked with.
    command = [sys.executable, "-m", "export_pipeline_tests.docs", "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
