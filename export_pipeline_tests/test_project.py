"""The project's own files agree with each other."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


def test_the_demo_uses_the_dagster_yaml_of_the_project() -> None:
    shipped = (resources.files("export_pipeline.demo") / "dagster.yaml").read_text()
    assert shipped == (ROOT / "dagster.yaml").read_text()


def test_workspace_loads_the_definitions() -> None:
    (entry,) = yaml.safe_load((ROOT / "workspace.yaml").read_text())["load_from"]
    assert entry["python_module"]["module_name"] == "export_pipeline.definitions"


def test_readme_has_the_two_commands() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert "python3 -m venv .venv && .venv/bin/pip install -e '.[demo]' && .venv/bin/export-pipeline demo" in lines
    assert "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest" in lines


def test_links_between_docs_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_promise_of_the_contracts_names_a_place_and_a_test_that_exist() -> None:
    page = (ROOT / "docs" / "contracts.md").read_text().split("## With the gateway")[0]
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    promises = [row for row in rows if row[0].strip() != "promise"]
    assert len(promises) >= 80
    for promise, *places in promises:
        assert len(places) == 2, promise
        for root, place in zip(("export_pipeline", "export_pipeline_tests"), places, strict=True):
            path, _, name = place.strip(" `").partition("::")
            text = (ROOT / root / path).read_text()
            assert not name or re.search(rf"^(def|class) {name}\b|^{name}\b.* = ", text, re.MULTILINE), (
                f"{promise}: {place}"
            )


def test_every_threat_names_an_answer_and_tests_that_exist() -> None:
    page = (ROOT / "SECURITY.md").read_text().split("## Threats")[1].split("## Out of scope")[0]
    rows = [line.strip("|").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    threats = [row for row in rows if row[0].strip() != "threat"]
    assert len(threats) >= 20
    for threat, answer, shown in threats:
        assert answer.strip(), threat
        tests = re.findall(r"`([a-z0-9_/]+\.py)::(\w+)`", shown)
        assert len(tests) == shown.count("::") >= 1, threat
        for path, name in tests:
            text = (ROOT / "export_pipeline_tests" / path).read_text()
            assert re.search(rf"^(def|class) {name}\b", text, re.MULTILINE), f"{threat}: {path}::{name}"


def test_the_worked_example_of_the_catalog_guide_is_a_dataset() -> None:
    from export_pipeline.catalog.loader import CatalogError, parse_dataset

    text = (ROOT / "docs" / "catalog.md").read_text().split("```yaml\n", 1)[1].split("```", 1)[0]
    dataset = parse_dataset(text, file="invoices.yaml")
    assert [column.header for column in dataset.layout("accounting") or ()] == ["NUMBER", "TOTAL", "ISSUED_AT"]
    with pytest.raises(
        CatalogError, match=r"^invoices\.yaml:14: columns\.3\.type: 'money' is not one of text, integer"
    ):
        parse_dataset(text.replace("type: decimal", "type: money"), file="invoices.yaml")
