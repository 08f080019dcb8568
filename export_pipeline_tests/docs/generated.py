"""What the documentation says of the code, made from the code: commands, settings, schema, runbook, imports."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import click
import grimp

from export_pipeline.catalog.model import Dataset
from export_pipeline.cli import cli
from export_pipeline.orchestration.runbook import RUNBOOK
from export_pipeline.settings import HOME, Settings

ROOT = Path(__file__).parents[2]
_WIDTH = 110
_PACKAGE = "export_pipeline"
_FROM, _TO = "<!-- imports: python -m export_pipeline_tests.docs -->", "<!-- end of imports -->"


def pages() -> dict[Path, str]:
    """Each page that is generated, or has a part that is, as it must be."""
    architecture = ROOT / "docs" / "architecture.md"
    before, _, rest = architecture.read_text().partition(_FROM)
    _, _, after = rest.partition(_TO)
    return {
        ROOT / "docs" / "cli.md": command_line(),
        ROOT / "docs" / "settings.md": settings((ROOT / "docs" / "settings.md").read_text()),
        ROOT / "docs" / "operations.md": runbook((ROOT / "docs" / "operations.md").read_text()),
        ROOT / _PACKAGE / "catalog" / "dataset.schema.json": dataset_schema(),
        architecture: f"{before}{_FROM}\n\n```mermaid\n{imports()}```\n\n{_TO}{after}",
    }


def dataset_schema() -> str:
    """The JSON Schema (draft 2020-12) of a dataset declaration, for editors."""
    schema = Dataset.model_json_schema(mode="validation")
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def meanings() -> dict[str, str]:
    """The text under each field of ``Settings``."""
    (declared,) = ast.parse(inspect.getsource(Settings)).body
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(declared.body)
        if isinstance(field, ast.AnnAssign)
    }


def settings(page: str) -> str:
    """The page with the default and the meaning of each variable as ``Settings`` has them."""
    entries, meaning = {}, meanings()
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias if isinstance(field.validation_alias, str) else f"EXPORT_{name.upper()}"
        default = field.get_default(call_default_factory=True)
        text = default.get_secret_value() if hasattr(default, "get_secret_value") else str(default)
        text = text.replace("sqlite:////", "sqlite:///").replace(str(HOME.parent)[1:], "~")
        entries[variable] = f"* `{variable}`{f' (`{text}`)' if text else ''}: {meaning[name]}"
    return re.sub(r"^\* `([A-Z0-9_]+)`.*$", lambda line: entries.get(line[1], line[0]), page, flags=re.MULTILINE)


def runbook(page: str) -> str:
    """The page with turn and advice of each failure code as ``RUNBOOK`` has them."""
    code = ""
    lines = []
    for line in page.splitlines():
        if found := re.match(r"(?:#### |\| )`(\w+)`", line):
            code = found[1]
        advice = RUNBOOK.get(code)  # type: ignore[call-overload]
        if advice and re.match(r"\| `\w+` \| (requester|organization|operator) \| ", line):
            line = f"| `{code}` | {advice.turn} | {advice.press} |"  # noqa: PLW2901
        elif advice and line.startswith("* **Turn:** "):
            line = f"* **Turn:** {advice.turn}"  # noqa: PLW2901
        elif advice and line.startswith("* **Press:** "):
            line = f"* **Press:** {advice.press}"  # noqa: PLW2901
        lines.append(line)
    return "\n".join(lines) + "\n"


def command_line() -> str:
    """Every command's help."""
    parts = ["# The command\n\n`python -m export_pipeline_tests.docs` writes this page from the command's own help.\n"]
    for context in _commands(cli, "export-pipeline", None):
        lines = [line.rstrip() for line in context.get_help().splitlines()]
        parts.append(f"## `{context.command_path}`\n\n```\n" + "\n".join(lines) + "\n```\n")
    return "\n".join(parts)


def _commands(command: click.Command, name: str, parent: click.Context | None) -> Iterator[click.Context]:
    settings = {**command.context_settings, "terminal_width": _WIDTH, "max_content_width": _WIDTH}
    context = click.Context(command, parent, info_name=name, **settings)
    yield context
    if isinstance(command, click.Group):
        for one in sorted(command.commands):
            yield from _commands(command.commands[one], one, context)


def imports() -> str:
    """The parts as a diagram: an arrow for each import that no way over another part implies."""
    graph = grimp.build_graph(_PACKAGE, cache_dir=None)
    parts = sorted(module for module in graph.find_children(_PACKAGE))
    direct = {one: {other for other in parts if other != one and _imports(graph, one, other)} for one in parts}
    lines = ["graph TD"]
    for one in parts:
        implied = {far for near in direct[one] for far in _reachable(direct, near)}
        lines += [f"    {_name(one)} --> {_name(other)}" for other in sorted(direct[one] - implied)]
    return "\n".join(lines) + "\n"


def _imports(graph: grimp.ImportGraph, one: str, other: str) -> bool:
    importers = graph.find_descendants(one) | {one}
    imported = graph.find_descendants(other) | {other}
    return any(graph.find_modules_directly_imported_by(module) & imported for module in importers)


def _reachable(direct: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = set(direct[start])
    while waiting:
        found |= waiting
        waiting = {far for near in waiting for far in direct[near]} - found
    return found


def _name(module: str) -> str:
    return module.removeprefix(f"{_PACKAGE}.")
