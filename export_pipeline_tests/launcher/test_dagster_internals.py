"""The private names of Dagster that we use exist and have the shape that we rely on: an upgrade fails here first."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from dagster import DefaultRunLauncher
from dagster._core.remote_origin import RegisteredCodeLocationOrigin

import export_pipeline
from export_pipeline.launcher import dagster_internals as of_launcher
from export_pipeline.orchestration import runs as of_orchestration

PACKAGE = Path(export_pipeline.__file__).parent
MODULES = {
    PACKAGE / "launcher" / "dagster_internals.py": of_launcher,
    PACKAGE / "orchestration" / "runs.py": of_orchestration,
}


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_private_names_of_dagster_are_imported_in_two_modules_only() -> None:
    users = {path for path in PACKAGE.rglob("*.py") if any(re.match(r"dagster\._", name) for name in imports(path))}
    assert users == set(MODULES)


def test_the_launcher_imports_nothing_else_of_the_package() -> None:
    ours = {name for path in (PACKAGE / "launcher").glob("*.py") for name in imports(path) if "export_pipeline" in name}
    assert all(name.startswith("export_pipeline.launcher") for name in ours)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.parent.name)
def test_each_private_name_has_its_reason_above(path: Path) -> None:
    tree, lines = ast.parse(path.read_text()), path.read_text().splitlines()
    nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom) and "dagster._" in (node.module or "")]
    assert all(lines[node.lineno - 2].startswith("# ") for node in nodes)
    names = [alias.asname or alias.name for node in nodes for alias in node.names]
    assert all(hasattr(MODULES[path], name) for name in names)


def test_what_the_launcher_calls_takes_what_it_passes() -> None:
    assert parameters(of_launcher.execute_run) == ["run_id", "instance", "write_stream_fn", "set_exit_code_on_failure"]
    assert parameters(of_launcher.get_run_crash_explanation) == ["prefix", "exit_code"]
    assert parameters(of_launcher.ReconstructableRepository)[0] == "pointer"
    assert parameters(of_launcher.CheckRunHealthResult)[:2] == ["status", "msg"]
    assert {"RUNNING", "FAILED"} <= set(of_launcher.WorkerStatus.__members__)
    assert of_launcher.LaunchRunContext._fields == ("dagster_run", "workspace")
    assert of_launcher.GrpcServerCodeLocationOrigin("host", 4000).host == "host"
    for pointer in (of_launcher.ModuleCodePointer, of_launcher.PackageCodePointer):
        assert issubclass(pointer, of_launcher.CodePointer)
        assert pointer("module", "attribute", "directory").working_directory == "directory"
    assert DefaultRunLauncher()._run_ids == set()
    with of_launcher.capture_interrupts():
        pass


def test_what_orchestration_reads_is_there() -> None:
    assert {"marker_start", "marker_end"} <= set(parameters(of_orchestration.EngineEventData))
    location = RegisteredCodeLocationOrigin("location")
    assert of_orchestration.RemoteRepositoryOrigin(location, "repository").get_label() == "repository@location"
    assert of_orchestration.REPOSITORY_LABEL_TAG == ".dagster/repository"
