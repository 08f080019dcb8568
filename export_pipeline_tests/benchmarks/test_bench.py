"""The benchmark on real databases: everybody is measured, and nobody wins by writing less."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from export_pipeline_tests.benchmarks.__main__ import WORKS as OFFERED
from export_pipeline_tests.benchmarks.__main__ import bench
from export_pipeline_tests.benchmarks.compare import Goal, Pair
from export_pipeline_tests.benchmarks.contestants import Arena, Command, Contestant, LocalS3, ours, psql_copy, psql_gzip
from export_pipeline_tests.benchmarks.data import Databases
from export_pipeline_tests.benchmarks.launcher import LAUNCHER
from export_pipeline_tests.benchmarks.run import run_work
from export_pipeline_tests.benchmarks.tables import contacts
from export_pipeline_tests.benchmarks.works import WORKS, Work
from export_pipeline_tests.servers.postgres import PostgresServer

ROWS = 300


@pytest.fixture(scope="module")
def arena(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    directory = tmp_path_factory.mktemp("bench")
    with postgres_server.fresh_database() as url:
        named = url.replace("postgresql://", "postgresql+psycopg://", 1)
        databases = Databases(postgres_server, named, directory / "source.db", lambda _: None)
        yield Arena(databases, LocalS3("", directory, {}), directory)


@pytest.mark.slow
def test_the_quick_run_measures_everybody_who_was_asked(tmp_path: Path) -> None:
    told, page = tmp_path / "bench.json", tmp_path / "bench.md"
    shown = CliRunner().invoke(bench, ["--quick", "--works", "csv,split", "--json", str(told), "--markdown", str(page)])
    assert shown.exit_code == 0, shown.output
    results = json.loads(told.read_text())
    asked = [
        (work.title, pair.peer) for work in (WORKS[name](20_000) for name in ("csv", "split")) for pair in work.pairs
    ]
    assert [(one["work"], one["peer"]) for one in results["comparisons"]] == asked
    medians = {(one["work"], one["contestant"]): one for one in results["medians"]}
    for one in results["comparisons"]:
        ours, peer = (medians[one["work"], one[side]] for side in ("subject", "peer"))
        assert one["wall_ratio"] == pytest.approx(ours["wall_seconds"] / peer["wall_seconds"])
        assert one["cpu_ratio"] == pytest.approx(ours["cpu_seconds"] / peer["cpu_seconds"])
        assert one["rss_ratio"] == pytest.approx(ours["peak_rss_mb"] / peer["peak_rss_mb"])
        assert (one["goal"] is None) == (one["met"] is None)
    for one in medians.values():
        # The nasty rows are spelled differently, but nobody leaves a tenth out.
        assert 5e6 < one["bytes"] < 7e6, one
        assert one["server_cpu_seconds"] > 0, one
        assert one["wall_seconds"] <= one["process_seconds"], one
    mine = medians["csv, 20,000 rows", "export-pipeline"]
    assert mine["parts"]["read"] > 0
    assert all(0 <= seconds <= mine["wall_seconds"] for seconds in mine["parts"].values())
    assert medians["split, csv, 20,000 rows", "files of at most 1 MB"]["files"] > 5
    assert results["machine"]["cores"] >= 1
    assert results["versions"]["duckdb"] != "not installed"
    assert "| csv, 20,000 rows | export-pipeline | duckdb |" in page.read_text()


def _shorter(real: Contestant, name: str) -> Contestant:
    return replace(real, name=name, rows=real.rows + 1)


def _narrower(real: Contestant) -> Contestant:
    few = replace(real.table, columns={"id": "integer", "email": "text"})
    return replace(psql_copy(few), name="narrower", table=real.table)


def _breaking(real: Contestant) -> Contestant:
    def build(arena: Arena, directory: Path) -> Command:
        return replace(real.build(arena, directory), arguments=["bash", "-c", "echo no such table >&2; exit 3"])

    return replace(real, name="breaking", build=build)


def test_who_writes_less_is_caught_and_the_others_go_on(arena: Arena) -> None:
    table = contacts(ROWS)
    fair = psql_copy(table)
    mine = ours(table, "csv")
    contestants = [mine, fair, _shorter(fair, "short"), _narrower(fair), _breaking(fair)]
    goal = Goal(wall_ratio=1e9)
    work = Work("w", contestants, [Pair(mine.name, one.name, goal) for one in contestants[1:]])
    medians, comparisons = run_work(arena, work, 2, lambda _: None)
    assert [one.failure for one in medians] == [
        None,
        None,
        f"wrote {ROWS} rows of {ROWS + 1}; its time is no measure",
        "wrote 2 columns of 15; its time is no measure",
        "ended with 3: no such table",
    ]
    assert [one.runs for one in medians] == [2, 2, 0, 0, 0]
    assert [one.met for one in comparisons] == [True, False, False, False]
    assert [path.name for path in arena.directory.iterdir()] == []


def test_many_requests_of_one_process_export_every_row_once(arena: Arena) -> None:
    contestant = ours(contacts(ROWS), "ndjson.gz", requests=10)
    medians, _ = run_work(arena, Work("w", [contestant], []), 1, lambda _: None)
    assert [(one.rows, one.files, one.failure) for one in medians] == [(ROWS, 10, None)]


def test_works_that_are_not_known_are_refused() -> None:
    shown = CliRunner().invoke(bench, ["--works", "csv,pdf"])
    assert shown.exit_code == 2
    assert "pdf: not known; use some of csv, ndjson" in shown.output


def test_the_command_offers_every_work() -> None:
    assert sorted(OFFERED) == sorted([*WORKS, LAUNCHER])


def test_a_pipe_fails_if_its_first_command_does(arena: Arena) -> None:
    table = replace(contacts(ROWS), shape="absent")
    absent = replace(psql_gzip(table), table=contacts(ROWS))
    medians, _ = run_work(arena, Work("w", [absent], []), 1, lambda _: None)
    assert 'relation "absent_300" does not exist' in (medians[0].failure or "")
