"""What is delivered is what the application stored: every cell, by readers that are not ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from export_pipeline.demo.data import ORGANIZATIONS
from export_pipeline_tests import adversarial
from export_pipeline_tests.acceptance import cells
from export_pipeline_tests.acceptance.application import CONTACTS, DATASETS, ENTITIES, stored_rows
from export_pipeline_tests.acceptance.pipeline import RECIPIENT, Database, Pipeline, S3Shelf, open_pipeline
from export_pipeline_tests.contract import format_readers as readers
from export_pipeline_tests.servers.s3 import S3Bucket

ORGANIZATION = ORGANIZATIONS[0].id
Reader = Callable[[bytes], readers.Rows]


def openpyxl(data: bytes) -> readers.Rows:
    header, rows = readers.xlsx_openpyxl(data)
    # It leaves Excel's escape for a literal _x0041_ as it stands in the file.
    escaped = re.compile("_x005F_(?=x[0-9A-Fa-f]{4})")
    return header, [[escaped.sub("_", cell) if isinstance(cell, str) else cell for cell in row] for row in rows]


READERS: Mapping[str, Mapping[Reader, cells.Says]] = {
    "csv": {
        readers.csv_module: cells.csv_says,
        readers.csv_pandas: cells.csv_says,
        readers.csv_arrow: cells.csv_exactly_says,
    },
    "json": {readers.json_array: cells.json_says},
    "ndjson": {readers.ndjson: cells.json_says},
    "xlsx": {openpyxl: cells.xlsx_says, readers.xlsx_calamine: cells.xlsx_says},
    "parquet": {readers.parquet_arrow: cells.parquet_says, readers.parquet_pandas: cells.parquet_says},
}
VARIANTS = [
    ("csv", None, False),
    ("csv", "gzip", True),
    ("json", None, False),
    ("json", "gzip", True),
    ("ndjson", None, True),
    ("ndjson", "none", False),
    ("xlsx", None, False),
    ("parquet", None, False),
]


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize(("file_format", "compression", "gzipped"), VARIANTS)
def test_every_cell_is_what_the_application_stored(
    pipeline: Pipeline, dataset: str, file_format: str, compression: str | None, gzipped: bool
) -> None:
    result = pipeline.export(dataset=dataset, format=file_format, compression=compression)
    assert (result.state.status, result.state.message) == ("completed", None)
    stored = stored_rows(pipeline.database, dataset, ORGANIZATION)
    assert result.state.row_count == len(stored) > 500
    (data,) = result.files
    assert data.startswith(b"\x1f\x8b") == gzipped
    check_cells(file_format, readers.gunzip_one_member(data) if gzipped else data, DATASETS[dataset], stored)
    assert result.manifest is not None
    assert result.manifest["columns"] == list(DATASETS[dataset])
    assert result.manifest["counters"] == counters(file_format, DATASETS[dataset], stored)
    assert [mail["To"] for mail in result.mails] == [RECIPIENT]
    assert not pipeline.staged()


def check_cells(file_format: str, data: bytes, columns: Mapping[str, str], stored: list[tuple[Any, ...]]) -> None:
    for read, says in READERS[file_format].items():
        header, rows = read(data)
        assert header == list(columns)
        assert len(rows) == len(stored)
        wrong = [
            (place, name, found, value)
            for place, (row, values) in enumerate(zip(rows, stored, strict=True))
            for (name, kind), found, value in zip(columns.items(), row, values, strict=True)
            if not says(found, value, kind)
        ]
        assert not wrong, f"{len(wrong)} cells by {read.__name__}, the first: {wrong[:5]!r}"


def counters(file_format: str, columns: Mapping[str, str], stored: list[tuple[Any, ...]]) -> dict[str, int]:
    """What the manifest must say was altered."""
    texts = [
        (value, kind) for row in stored for value, kind in zip(row, columns.values(), strict=True)
        if isinstance(value, str) and kind != "decimal"
    ]  # fmt: skip
    if file_format == "csv":
        return {"guarded_cells": sum(kind == "text" and value in cells.GUARDED for value, kind in texts)}
    if file_format == "xlsx":
        is_cut = [cells.xlsx_text(value).endswith("… [cut]") for value, _ in texts]
        replaced = sum("\ufffd" in cells.xlsx_text(value) for value, _ in texts)
        return {"replaced_characters": replaced, "cut_cells": sum(is_cut)}
    return {"non_finite_numbers": 0} if file_format in ("json", "ndjson") else {}


def instants(database: Database) -> set[datetime]:
    del database
    return {datetime.fromisoformat(text).replace(tzinfo=UTC) for text in adversarial.TIMESTAMPS}


def days(_database: Database) -> set[date | None]:
    return {None if text is None else date.fromisoformat(text) for text in adversarial.DATES}


def floats(database: Database) -> set[str]:
    texts = {repr(number) for number in adversarial.FLOATS}
    return texts - {"-0.0"} if database.kind == "sqlite" else texts  # SQLite keeps -0.0 as 0.0


NASTY: Mapping[str, Mapping[str, Callable[[Database], set[Any]]]] = {
    "contacts": {
        "name": lambda _: set(adversarial.TEXTS.values()),
        "first_name": lambda _: set(adversarial.TEXTS.values()),
        "external_id": lambda _: set(adversarial.TEXTS.values()),
        "location": lambda _: {adversarial.LONG_TEXT},
        "phone_number": lambda _: set(adversarial.PHONES),
        "email": lambda _: set(adversarial.EMAILS),
        "custom_fields": lambda _: {*adversarial.OBJECTS, adversarial.LONG_OBJECT},
        "score": floats,
        "lifetime_value": lambda _: set(adversarial.DECIMALS),
        "birth_date": days,
        "created_at": instants,
        "is_subscribed": lambda _: {True, False, None},
    },
    "entities": {
        "name": lambda _: set(adversarial.TEXTS.values()),
        "phone": lambda _: set(adversarial.PHONES),
        "email": lambda _: set(adversarial.EMAILS),
        "entity_data": lambda _: set(adversarial.OBJECTS),
        "attributes": lambda _: {adversarial.LONG_OBJECT},
        "registration_date": days,
        "created_at": instants,
        "deleted_at": lambda _: {None},
        "risk_score": lambda _: {None, 0, 100},
    },
}


@pytest.mark.parametrize("dataset", DATASETS)
def test_the_stored_rows_hold_every_nasty_value(pipeline: Pipeline, dataset: str) -> None:
    columns = list(DATASETS[dataset])
    stored = stored_rows(pipeline.database, dataset, ORGANIZATION)
    for column, expected in NASTY[dataset].items():
        values = [row[columns.index(column)] for row in stored]
        found = {repr(value) for value in values} if expected is floats else set(values)
        assert not expected(pipeline.database) - found, column


def test_columns_compared_are_all_columns_of_the_tables(pipeline: Pipeline) -> None:
    tables = {"contacts": {*CONTACTS, "organization_id"}, "entities": set(ENTITIES)}
    for table, columns in tables.items():
        with pipeline.database.connect() as connection:
            cursor = connection.execute(f"SELECT * FROM {table} LIMIT 0")
        assert {column[0] for column in cursor.description} == columns


def test_asked_columns_and_their_order_are_the_files(pipeline: Pipeline) -> None:
    asked = ["created_at", "name", "id"]
    result = pipeline.export(columns=asked, format="parquet")
    stored = stored_rows(pipeline.database, "contacts", ORGANIZATION)
    places = [list(CONTACTS).index(name) for name in asked]
    wanted = [tuple(row[place] for place in places) for row in stored]
    check_cells("parquet", result.files[0], {name: CONTACTS[name] for name in asked}, wanted)


def test_timestamps_in_the_organizations_zone_are_the_same_instants(pipeline: Pipeline) -> None:
    result = pipeline.export(columns=["created_at"], format="json", options={"time_zone": "America/Sao_Paulo"})
    stored = stored_rows(pipeline.database, "contacts", ORGANIZATION)
    found = [datetime.fromisoformat(item["created_at"]) for item in json.loads(result.files[0])]
    assert found == [row[list(CONTACTS).index("created_at")] for row in stored]
    assert len({moment.utcoffset() for moment in found}) > 1


@pytest.mark.parametrize("organization", ["00000000-0000-4000-8000-000000000000"])
@pytest.mark.parametrize("file_format", READERS)
def test_an_organization_without_rows_gets_a_sound_empty_file(
    pipeline: Pipeline, organization: str, file_format: str
) -> None:
    result = pipeline.export(format=file_format, organization_id=organization, compression="none")
    assert (result.state.status, result.state.row_count) == ("completed", 0)
    (data,) = result.files
    for read in READERS[file_format] if data else ():
        header, rows = read(data)
        assert rows == []
        assert header == ([] if file_format == "json" else list(CONTACTS))
    assert data or file_format == "ndjson"


@pytest.mark.parametrize("file_format", ["csv", "parquet"])
def test_the_same_arrives_on_s3(sqlite_demo: Database, s3_bucket: S3Bucket, tmp_path: Path, file_format: str) -> None:
    with open_pipeline(sqlite_demo, S3Shelf(s3_bucket), tmp_path) as pipeline:
        result = pipeline.export(format=file_format)
        assert result.state.status == "completed"
        stored = stored_rows(sqlite_demo, "contacts", ORGANIZATION)
        check_cells(file_format, result.files[0], CONTACTS, stored)
        assert len(pipeline.shelf.keys()) == 2
        (mail,) = result.mails
        assert s3_bucket.endpoint in mail.as_string().replace("=\n", "")
