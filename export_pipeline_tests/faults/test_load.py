"""The load generator drives a real installation; here a few requests, to see that it does and what it tells."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest


@pytest.mark.timeout(600)
def test_the_load_generator_drives_reports_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "load.svg"
    command = [sys.executable, "-m", "export_pipeline_tests.load", "--requests", "6", "--rows", "50"]
    shown = subprocess.run([*command, "--plot", str(picture)], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    told = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", shown.stdout, re.MULTILINE))
    assert told["exports completed"] == "6"
    assert float(told["exports a minute, over all"]) > 0
    assert re.fullmatch(r"\d+; \d+ MB", told["Dagster's events an export; its database"])
    assert ET.parse(picture).getroot().tag.endswith("svg")
