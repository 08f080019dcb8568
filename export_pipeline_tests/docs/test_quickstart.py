"""The quickstart, done word by word in an empty directory: every command runs and prints what the page shows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from export_pipeline.demo.home import free_port
from export_pipeline.launcher.client import stop_servers
from export_pipeline.requests import queue
from export_pipeline_tests.acceptance.pipeline import Database, LocalShelf, open_pipeline
from export_pipeline_tests.docs.blocks import ROOT, Block, blocks

pytestmark = pytest.mark.timeout(600)
PAGE = ROOT / "docs" / "quickstart.md"
PROMPT = "cd {home} && . .venv/bin/activate && {{ [ ! -f settings.sh ] || . ./settings.sh; }}\n"
SLOWEST_SECONDS = 120


def steps() -> list[Block]:
    """The blocks of the page, from top to bottom."""
    found = [block for language in ("sh", "sql", "yaml", "text") for block in blocks(language)]
    return sorted((block for block in found if block.page == PAGE.name), key=lambda block: block.line)


def saved_as(block: Block) -> str | None:
    """The file that the sentence before a block names."""
    before = "\n".join(PAGE.read_text().splitlines()[: block.line - 1]).rstrip().rpartition("\n\n")[2]
    named = re.search(r"[Ss]ave \w+\s+as `([^`]+)`:$", before)
    return named and named[1]


def shows(printed: str, page: str) -> bool:
    """Whether a command printed what the page shows: ``…`` stands for anything, alone in its line for any lines."""
    lines = [line.rstrip() for line in page.splitlines()]
    patterns = ["(?:.*\n)*" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + "\n" for line in lines]
    text = "".join(line.rstrip() + "\n" for line in printed.splitlines())
    return re.fullmatch("".join(patterns), text.rstrip("\n") + "\n") is not None


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An empty directory, with the clone where the page has it and the product installed in ``.venv``."""
    (tmp_path / "export-pipeline").symlink_to(ROOT)
    programs = tmp_path / "empty" / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "activate").write_text(f'PATH="{programs}:{Path(sys.executable).parent}:$PATH"\n')
    (programs / "export-pipeline").write_text(f"#!{sys.executable}\nfrom export_pipeline.cli import main\nmain()\n")
    (programs / "export-pipeline").chmod(0o755)
    return tmp_path / "empty"


def shell(
    home: Path, script: str, stdout: Any = subprocess.PIPE, stderr: Any = subprocess.PIPE
) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("EXPORT_", "DAGSTER_"))}
    environment = {**kept, "HOME": str(home.parent), "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    command = ["bash", "-uo", "pipefail", "-c", PROMPT.format(home=home) + script]
    return subprocess.Popen(command, env=environment, text=True, stdout=stdout, stderr=stderr, start_new_session=True)


@contextmanager
def in_the_second_terminal(home: Path, script: str) -> Iterator[None]:
    log = home / "dagster.log"
    with log.open("w") as file:
        process = shell(home, f"{script.rstrip()} -p {free_port()}", file, file)
    try:
        deadline = time.monotonic() + SLOWEST_SECONDS
        while "Serving dagster-webserver" not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]  # noqa: PT018
            time.sleep(0.5)
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
                break
        stop_servers(home / "dagster")


@pytest.mark.slow
def test_it_works_word_by_word(home: Path) -> None:
    install, *rest = steps()
    assert "pip install ~/export-pipeline" in install.text
    (home / "catalog").mkdir()
    assert "`mkdir catalog`" in PAGE.read_text()
    work(home, rest)
    assert {path.name for path in home.iterdir()} >= {"shop.db", "exports.db", "store", "outbox", "dagster"}


def work(home: Path, remaining: list[Block]) -> None:
    while remaining:
        block = remaining.pop(0)
        if name := saved_as(block):
            (home / name).write_text(block.text)
        elif "dagster dev" in block.text:
            with in_the_second_terminal(home, block.text):
                return work(home, remaining)
        else:
            page = remaining.pop(0).text if remaining and remaining[0].language == "text" else None
            run(home, block, page)
    return None


def run(home: Path, block: Block, page: str | None) -> None:
    """Run a block until it prints what the page shows: a mail comes a moment after its file."""
    assert block.language == "sh", f"{block}: the sentence before it does not say where to save it"
    deadline = time.monotonic() + SLOWEST_SECONDS
    while True:
        printed, problems = (process := shell(home, block.text)).communicate()
        if page is None:
            assert process.returncode == 0, f"{block}: {problems}"
            return
        if shows(printed, page):
            return
        assert time.monotonic() < deadline and "outbox" in block.text, f"{block}:\n{printed}\n{problems}"  # noqa: PT018
        time.sleep(1)


def test_a_wrong_type_is_named_by_the_check_as_the_page_says(home: Path) -> None:
    (home / "catalog").mkdir()
    for block in steps():
        if name := saved_as(block):
            (home / name).write_text(block.text.replace("type: decimal", "type: money"))
    printed, _problems = shell(home, "export-pipeline check").communicate()
    assert re.search(
        r"^wrong    source: catalog: orders\.yaml:9: columns\.2\.type: 'money' is not one of", printed, re.MULTILINE
    )


def test_from_postgresql_the_same_dataset_keeps_the_zeros_as_the_page_says(tmp_path: Path, postgres_url: str) -> None:
    database, saved = Database(postgres_url), {saved_as(block): block.text for block in steps()}
    (tmp_path / "catalog").mkdir()
    (tmp_path / "catalog" / "orders.yaml").write_text(saved["catalog/orders.yaml"])
    for statement in filter(str.strip, saved["shop.sql"].split(";\n")):
        database.execute(statement)
    catalog = str(tmp_path / "catalog")
    with open_pipeline(database, LocalShelf(tmp_path / "store"), tmp_path, EXPORT_CATALOG=catalog) as pipeline:
        database.execute(saved["ask.sql"].rstrip().rstrip(";"))
        with pipeline._engine.begin() as connection:
            (claim,) = queue.claim(connection, limit=1)
        result = pipeline._run(claim)
    (file,) = result.files
    assert b"\n1,Ana Sousa,19.90," in file
    assert "from PostgreSQL the cell is `19.90`" in " ".join(PAGE.read_text().split())
