"""Every block of code in the documentation does what it says: it runs, loads or parses."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import httpx2
import pytest
import sqlalchemy as sa

from export_pipeline.catalog.loader import load_catalog, parse_dataset
from export_pipeline.catalog.model import CustomField
from export_pipeline.catalog.types import ColumnType
from export_pipeline.cli import cli
from export_pipeline.database.engine import create_engine
from export_pipeline.demo.data import ORGANIZATIONS, load_demo_data
from export_pipeline.filters.segments import parse_segment_query
from export_pipeline.requests.api_keys import create_key
from export_pipeline.settings import Settings
from export_pipeline_tests.acceptance.pipeline import Database, LocalShelf, open_pipeline
from export_pipeline_tests.docs.blocks import LANGUAGES, PAGES, Block, blocks
from export_pipeline_tests.gateway.load import running_gateway

IN_DOCS = "http://127.0.0.1:8080"


def test_every_block_is_of_a_language_that_is_held_here() -> None:
    named = {name for page in PAGES for name in re.findall(r"^```(\w+)", page.read_text(), re.MULTILINE)}
    assert named <= set(LANGUAGES)
    assert all(blocks(language) for language in LANGUAGES)


def test_the_sql_runs_on_both_databases(database: sa.Engine) -> None:
    with database.begin() as connection:
        for block in blocks("sql"):
            if "FROM contact_data" in block.text:
                continue
            for statement in block.text.split(";\n"):
                if statement.strip():
                    connection.exec_driver_sql(statement)
        asked = connection.exec_driver_sql("SELECT count(*) FROM export_requests WHERE status = 'queued'").scalar_one()
    assert asked == sum(block.text.count("INSERT INTO export_requests") for block in blocks("sql"))


def test_the_segment_query_is_one() -> None:
    contacts = load_catalog("")["contacts"]
    fields = next(column for column in contacts.columns if column.name == "custom_fields")
    orders = CustomField(fields, "orders", ColumnType.DECIMAL)
    queries = [block.text for block in blocks("sql") if "FROM contact_data" in block.text]
    assert queries
    for query in queries:
        parse_segment_query(query, contacts, (orders,), "UTC")


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_a_dataset(block: Block) -> None:
    assert parse_dataset(block.text, file=block.page).columns


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of an installation with the demo's data, a key, and a gateway that is running."""
    directory = tmp_path_factory.mktemp("docs")
    url = f"sqlite:///{directory}/application.db"
    load_demo_data(url, contacts=50, entities=20)
    with open_pipeline(Database(url), LocalShelf(directory / "store"), directory) as pipeline:
        engine = create_engine(url)
        with engine.begin() as connection:
            key = create_key(connection, ORGANIZATIONS[0].id, ["contacts:export", "entities:export"])
        engine.dispose()
        environment = {**pipeline.environment, "EXPORT_API_KEY": key.secret, "PATH": _path_with_the_command(directory)}
        with running_gateway(directory, environment) as (port, _process):
            yield {**environment, "GATEWAY": f"http://127.0.0.1:{port}"}


def _path_with_the_command(directory: Path) -> str:
    """The command as it is installed, of this very tree."""
    programs = directory / "bin"
    programs.mkdir()
    command = programs / "export-pipeline"
    command.write_text(f"#!{sys.executable}\nfrom export_pipeline.cli import main\nmain()\n")
    command.chmod(0o755)
    return f"{programs}{os.pathsep}{os.environ['PATH']}"


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_python_runs(installation: dict[str, str], block: Block) -> None:
    code = block.text.replace(IN_DOCS, installation["GATEWAY"])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env={**os.environ, **installation},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [block for block in blocks("sh") if block.page == "using.md"], ids=str)
def test_the_shell_of_the_guide_runs(installation: dict[str, str], block: Block) -> None:
    script = "set -euo pipefail\n" + block.text.replace(IN_DOCS, installation["GATEWAY"])
    done = subprocess.run(
        ["bash", "-c", script], env={**os.environ, **installation}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def commands() -> list[tuple[Block, list[str]]]:
    """Every simple command of every shell block."""
    found = []
    for block in blocks("sh"):
        text = ""
        for line in block.text.replace("\\\n", " ").splitlines():
            text += line + "\n"
            try:
                tokens = tokens_of(text)
            except ValueError:  # a quotation that goes on in the next line
                continue
            text, words = "", []
            for word in [*tokens, ";"]:
                if word.strip("|&;()"):
                    words.append(word)
                else:
                    found += [(block, words)] if words else []
                    words = []
        assert not text, f"{block}: a quotation without an end"
    return found


def tokens_of(text: str) -> list[str]:
    """Words and operators, as the shell splits them."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;()")
    lexer.whitespace_split = True
    return list(lexer)


def test_every_command_of_ours_takes_the_arguments_that_it_is_shown_with(tmp_path: Path) -> None:
    ours = [(block, words) for block, words in commands() if words[0].split("/")[-1] == "export-pipeline"]
    assert len(ours) > 15
    for block, words in ours:
        try:
            # A directory of the reader's machine need not be one of this.
            _parse(cli, [str(tmp_path) if word == "/data" else word for word in words[1:]], None)
        except click.UsageError as error:
            pytest.fail(f"{block}: {' '.join(words)}: {error.format_message()}")


def _parse(command: click.Command, arguments: list[str], parent: click.Context | None) -> None:
    """Parse as the command would, all the way down, and run nothing."""
    context = command.make_context(command.name, list(arguments), parent)
    if isinstance(command, click.Group):
        rest = [*context._protected_args, *context.args]
        _name, chosen, further = command.resolve_command(context, rest)
        assert chosen is not None
        _parse(chosen, further, context)


def test_every_variable_that_the_shell_is_shown_with_is_a_setting() -> None:
    known = {f"EXPORT_{name.upper()}" for name in Settings.model_fields} | {"EXPORT_API_KEY", "DAGSTER_HOME"}
    shown = {
        name
        for block in blocks("sh")
        for name in re.findall(r"\b(?:export )?((?:EXPORT|DAGSTER)_[A-Z_]+)=", block.text)
    }
    assert shown
    assert shown <= known


def test_every_url_that_is_called_is_one_of_the_gateways(installation: dict[str, str]) -> None:
    served = set(_served(installation["GATEWAY"]))
    calls = [words for _block, words in commands() if words[0] == "curl"]
    assert len(calls) > 10
    for words in calls:
        path = next(word for word in words if word.startswith(IN_DOCS)).removeprefix(IN_DOCS).partition("?")[0]
        asked = re.sub(r"\$\w+", "{}", path)
        assert (_method(words), asked) in served, " ".join(words)


def _method(words: list[str]) -> str:
    if "-X" in words:
        return words[words.index("-X") + 1]
    return "POST" if "-d" in words and "-G" not in words else "GET"


def _served(gateway: str) -> Iterator[tuple[str, str]]:
    """Method and path of every operation, by the gateway's own OpenAPI documents."""
    for prefix in ("", "/gu1", "/sendgrid", "/cometly"):
        for path, operations in httpx2.get(f"{gateway}{prefix}/openapi.json").json()["paths"].items():
            for method in operations:
                yield method.upper(), re.sub(r"{\w+}", "{}", path)
