"""The worked example of the catalog's guide: its tables, its dataset, its request, and the file, to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from export_pipeline.requests import queue
from export_pipeline_tests.acceptance.pipeline import Database, LocalShelf, open_pipeline
from export_pipeline_tests.docs.blocks import ROOT, blocks


def worked(language: str) -> list[str]:
    """The blocks of the section."""
    section = (ROOT / "docs" / "catalog.md").read_text().split("## A worked example\n")[1].split("\n## ")[0]
    return [block.text for block in blocks(language) if block.page == "catalog.md" and block.text in section]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_worked_example_comes_out_as_it_is_printed(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/shop.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    database, catalog = Database(url), tmp_path / "catalog"
    tables, asked = worked("sql")
    (dataset,), (printed,) = worked("yaml"), worked("csv")
    catalog.mkdir()
    (catalog / "customers.yaml").write_text(dataset)
    for statement in tables.split(";\n"):
        database.execute(statement) if statement.strip() else None
    with open_pipeline(database, LocalShelf(tmp_path / "store"), tmp_path, EXPORT_CATALOG=str(catalog)) as pipeline:
        database.execute(asked.rstrip().rstrip(";"))
        with pipeline._engine.begin() as connection:
            (claim,) = queue.claim(connection, limit=1)
        result = pipeline._run(claim)
    assert result.state.status == "completed", result.state.message
    assert [file.decode() for file in result.files] == [printed]
