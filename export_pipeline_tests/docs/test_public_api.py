"""The public API: what ``import export_pipeline`` gives, what it costs, and that the docs use nothing deeper."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import export_pipeline
from export_pipeline_tests.docs.blocks import ROOT, blocks

HEAVY = ("adbc_driver_manager", "dagster", "polars", "pyarrow", "pydantic", "sqlalchemy")


def loaded_after(statement: str) -> set[str]:
    """The heavy packages that a statement loads, in a process of its own."""
    code = f"{statement}\nimport sys\nprint(*(set(sys.modules) & {set(HEAVY)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_every_public_name_can_be_imported_and_is_listed() -> None:
    for name in export_pipeline.__all__:
        assert getattr(export_pipeline, name).__name__ == name
        assert name in dir(export_pipeline)
    assert not hasattr(export_pipeline, "no_such_name")


def test_the_package_itself_loads_nothing_heavy() -> None:
    assert loaded_after("import export_pipeline") == set()


def test_asking_for_an_export_loads_no_dagster() -> None:
    assert "dagster" not in loaded_after("from export_pipeline import create_engine, insert_request, read_state")


def test_every_public_name_is_documented() -> None:
    page = (ROOT / "docs" / "using.md").read_text().split("## The Python API\n", 1)[1].split("\n## ", 1)[0]
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) == set(export_pipeline.__all__)


def test_the_docs_import_nothing_deeper_than_the_package() -> None:
    deeper = []
    for block in blocks("python"):
        for node in ast.walk(ast.parse(block.text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            deeper += [f"{block}: {name}" for name in names if name.startswith("export_pipeline.")]
    assert deeper == []
