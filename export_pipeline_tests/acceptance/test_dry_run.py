"""``export-pipeline request --dry-run`` answers what the export then comes to, inserts nothing and takes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from click.testing import CliRunner

from export_pipeline.cli import cli
from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline.demo.data.rows import list_id
from export_pipeline_tests.acceptance.pipeline import Pipeline

OURS = ORGANIZATIONS[0]
ASKED: Sequence[tuple[list[str], Mapping[str, Any]]] = [
    (["--format", "csv"], {"format": "csv"}),
    (["--format", "csv", "--layout", "sendgrid"], {"format": "csv", "layout": "sendgrid"}),
    (["--format", "ndjson", "--include", "comet_tokens"], {"format": "ndjson", "include": ["comet_tokens"]}),
    (["--format", "xlsx"], {"format": "xlsx"}),
    (["--format", "parquet"], {"format": "parquet"}),
    (["--format", "json", "--list", list_id(OURS, 1)], {"format": "json", "list_ids": [list_id(OURS, 1)]}),
    (["--format", "csv", "--filters", '{"id": -1}'], {"format": "csv", "filters": {"id": -1}}),
    (["--format", "csv", "--filters", '{"id": {"lte": 700}}'], {"format": "csv", "filters": {"id": {"lte": 700}}}),
]


def dry_run(pipeline: Pipeline, *arguments: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in pipeline.environment.items():
            patch.setenv(name, value)
        base = ("request", "--dry-run", "--organization", OURS.id, "--dataset", "contacts")
        return CliRunner().invoke(cli, [*base, *arguments])


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "row"), ASKED)
def test_rows_are_exact_and_bytes_and_files_are_near(
    pipeline: Pipeline, arguments: list[str], row: Mapping[str, Any]
) -> None:
    inserted = pipeline.database.query("SELECT count(*) FROM export_requests")
    answer = dry_run(pipeline, *arguments, "--json", "--recipient", "a@example.com", "--recipient", "a@EXAMPLE.com")
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.output)
    assert pipeline.database.query("SELECT count(*) FROM export_requests") == inserted
    state = pipeline.export(**row).state
    assert (told["rows"], told["files"], told["recipients"]) == (state.row_count, state.file_count, 1)
    assert state.byte_count is not None
    assert abs(told["bytes"] - state.byte_count) <= 0.1 * state.byte_count
    assert told["seconds"] >= 0


@pytest.mark.slow
def test_files_are_counted_by_the_ceiling(pipeline: Pipeline) -> None:
    arguments = ["--format", "csv", "--max-file-size-mb", "1", "--organization", OURS.id]
    told = json.loads(dry_run(pipeline, *arguments, "--json").output)
    state = pipeline.export(format="csv", max_file_size_mb=1).state
    assert state.file_count is not None
    assert abs(told["files"] - state.file_count) <= 1
    assert "files       about" in dry_run(pipeline, *arguments).output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--format", "pdf"], "unknown_format: format: 'pdf'"),
        (["--format", "csv", "--column", "shoe_size"], "unknown_column: columns: 'shoe_size'"),
        (["--format", "csv", "--recipient", "nobody"], "invalid_recipient: recipient_emails[0]"),
        (["--format", "csv", "--list", "1"], "unknown_list: list_ids[0]"),
        (
            ["--format", "csv", "--recipient", "a@example.com", "--from-email", "a@unknown.example"],
            "sender_domain_unknown: Domain",
        ),
    ],
)
def test_what_would_fail_says_so_with_its_code(pipeline: Pipeline, arguments: list[str], told: str) -> None:
    inserted = pipeline.database.query("SELECT count(*) FROM export_requests")
    answer = dry_run(pipeline, *arguments)
    assert answer.exit_code == 1
    assert told in answer.output
    assert pipeline.database.query("SELECT count(*) FROM export_requests") == inserted
