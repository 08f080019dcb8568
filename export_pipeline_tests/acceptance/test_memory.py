"""Memory does not grow with the rows: three times as many take no more."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from export_pipeline_tests.acceptance.memory import FORMATS, measure
from export_pipeline_tests.acceptance.source import load_one_organization

pytestmark = pytest.mark.slow
FEW, MANY = 100_000, 300_000
GROWTH = 1.15
"""What the allocators may keep beyond the first rows; the rows themselves would be a factor of 3."""


@pytest.fixture(scope="module")
def source_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('memory')}/application.db"
    load_one_organization(url, MANY)
    return url


@pytest.mark.parametrize("file_format", FORMATS)
def test_peak_memory_does_not_grow_with_the_rows(source_url: str, tmp_path: Path, file_format: str) -> None:
    with ThreadPoolExecutor(2) as threads:
        few, many = threads.map(lambda rows: measure(source_url, tmp_path, file_format, rows), (FEW, MANY))
    assert (few.rows, many.rows) == (FEW, MANY)
    assert many.bytes > 2.9 * few.bytes
    assert many.peak_mb < GROWTH * few.peak_mb, (few, many)
