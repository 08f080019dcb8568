"""The files that contributors and CI go by say what the project is."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

from export_pipeline_tests.docs.blocks import ROOT


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def project() -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def test_ci_runs_everything_on_every_python_that_is_promised() -> None:
    job = load(".github/workflows/ci.yml")["jobs"]["everything"]
    promised = [line.rpartition(" ")[2] for line in project()["classifiers"] if re.search(r"Python :: 3\.\d+$", line)]
    assert job["strategy"]["matrix"]["python"] == promised
    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_hooks_are_the_linters_of_ci() -> None:
    (repository,) = load(".pre-commit-config.yaml")["repos"]
    ci = (ROOT / ".ci" / "run").read_text()
    for hook in repository["hooks"]:
        command = shlex.split(hook["entry"])
        assert command[0] in ci
        assert (Path(sys.executable).parent / Path(command[0]).name).exists()


def test_templates_of_issues_ask_something() -> None:
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        assert form["name"]
        assert form["description"]
        assert any(part.get("validations", {}).get("required") for part in form["body"])


def test_every_dependency_has_a_licence_in_the_list_and_a_tested_version() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    listed = {_plain(name): licence for name, licence in re.findall(r"^\| (\S+) +\| (.+?) +\|$", page, re.MULTILINE)}
    tested = {_plain(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    extras = [one for extra in project()["optional-dependencies"].values() for one in extra]
    wanted = {_plain(re.split(r"[\[<>=,; ]", one)[0]) for one in (*project()["dependencies"], *extras)} - {
        "export-pipeline"
    }
    assert wanted <= listed.keys(), "write docs/dependencies.md anew; its first lines say how"
    assert wanted <= tested
    assert not [name for name, licence in listed.items() if "UNKNOWN" in licence]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
