"""The manifest and the verification: sound exports pass, every kind of damage is found."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import openpyxl
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from export_pipeline.catalog.types import FORMATS, ColumnType, OutputColumn
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats import open_format
from export_pipeline.formats.base import FormatOptions
from export_pipeline.stages.manifest import Manifest, ManifestFile, read_manifest, write_manifest
from export_pipeline.stages.row_counts import UnreadableFileError, count_rows, end_of_deep_object
from export_pipeline.stages.verify import verify
from export_pipeline.storage.local import LocalStore
from export_pipeline.storage.s3_store import S3Store
from export_pipeline.storage.store import ObjectDescription
from export_pipeline_tests.servers.s3 import S3Bucket

COLUMNS = ("id", "note")
ROWS = [(str(n), f'line one\nline "two", ñ {n}') for n in range(1000)]
NOW = datetime(2025, 11, 21, tzinfo=UTC)


def as_csv() -> bytes:
    quoted = ('"' + note.replace('"', '""') + '"' for _, note in ROWS)
    return "".join([",".join(COLUMNS) + "\n", *(f"{n},{note}\n" for n, note in enumerate(quoted))]).encode()


def as_ndjson() -> bytes:
    return "".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) + "\n" for row in ROWS).encode()


def as_json() -> bytes:
    return b"[\n" + as_ndjson().strip().replace(b"\n", b",\n") + b"\n]\n"


def as_xlsx() -> bytes:
    book, sink = openpyxl.Workbook(write_only=True), io.BytesIO()
    for chunk in (ROWS[:400], ROWS[400:]):
        sheet = book.create_sheet()
        for row in (COLUMNS, *chunk):
            sheet.append(row)
    book.save(sink)
    return sink.getvalue()


def as_parquet() -> bytes:
    sink = io.BytesIO()
    pa.parquet.write_table(pa.table({name: [row[i] for row in ROWS] for i, name in enumerate(COLUMNS)}), sink)
    return sink.getvalue()


SAMPLES: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "csv": ("csv", "none", as_csv),
    "csv.gz": ("csv", "gzip", lambda: gzip.compress(as_csv())),
    "csv-bom": ("csv", "none", lambda: b"\xef\xbb\xbf" + as_csv()),
    "json": ("json", "none", as_json),
    "json.gz": ("json", "gzip", lambda: gzip.compress(as_json())),
    "ndjson.gz": ("ndjson", "gzip", lambda: gzip.compress(as_ndjson())),
    "xlsx": ("xlsx", "none", as_xlsx),
    "parquet": ("parquet", "none", as_parquet),
}


@dataclass
class Delivered:
    store: LocalStore
    directory: Path
    manifest: Manifest
    key: str = "uid/1/s/manifest.json"

    @property
    def path(self) -> Path:
        return self.directory / self.manifest.files[0].key

    def problems(self) -> str:
        report = verify(self.store, self.key)
        assert report.sound == (not report.problems)
        return "\n".join(report.problems)


def manifest_of(file_format: str, compression: str, *contents: bytes, rows: int = len(ROWS)) -> Manifest:
    files = tuple(
        ManifestFile(
            ordinal=ordinal,
            key=f"uid/1/s/file-{ordinal}",
            name=f"file-{ordinal}",
            rows=rows,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            media_type="application/octet-stream",
        )
        for ordinal, content in enumerate(contents, 1)
    )
    return Manifest(
        uid=UUID(int=1),
        organization_id="org",
        attempt=1,
        dataset="contacts",
        catalog_version="0" * 64,
        format=file_format,
        compression=compression,
        columns=COLUMNS,
        rows=sum(file.rows for file in files),
        bytes=sum(file.bytes for file in files),
        files=files,
        snapshot_at=NOW,
        created_at=NOW,
        time_zone="UTC",
        guard_formulas=True,
        counters={"cut_cells": 1},
    )


def deliver(store: Any, manifest: Manifest, *contents: bytes) -> None:
    for file, content in zip(manifest.files, contents, strict=True):
        store.put(
            io.BytesIO(content),
            ObjectDescription(file.key, file.name, file.media_type),
            size=len(content),
            sha256=file.sha256,
            progress=lambda _: None,
        )
    write_manifest(store, "uid/1/s/manifest.json", manifest)


@pytest.fixture(params=list(SAMPLES))
def delivered(request: pytest.FixtureRequest, tmp_path: Path) -> Delivered:
    file_format, compression, make = SAMPLES[request.param]
    content = make()
    manifest, store = manifest_of(file_format, compression, content), LocalStore(tmp_path)
    deliver(store, manifest, content)
    return Delivered(store, tmp_path, manifest)


class TestVerify:
    def test_sound(self, delivered: Delivered) -> None:
        report = verify(delivered.store, delivered.key)
        assert report.problems == ()
        assert (report.files, report.rows, report.bytes) == (1, 1000, delivered.manifest.bytes)

    def test_flipped_byte(self, delivered: Delivered) -> None:
        content = bytearray(delivered.path.read_bytes())
        content[len(content) // 2] ^= 0x20
        delivered.path.write_bytes(content)
        assert "SHA-256" in delivered.problems()

    @pytest.mark.parametrize("cut", [1, 100, 10**9])
    def test_cut_tail(self, delivered: Delivered, cut: int) -> None:
        content = delivered.path.read_bytes()
        delivered.path.write_bytes(content[: max(0, len(content) - cut)])
        assert "SHA-256" in delivered.problems()
        assert "bytes, the manifest says" in delivered.problems()

    def test_garbage(self, delivered: Delivered) -> None:
        delivered.path.write_bytes(b"\x00\xff garbage \n" * 1000)
        assert "SHA-256" in delivered.problems()

    def test_missing_file(self, delivered: Delivered) -> None:
        delivered.path.unlink()
        assert "cannot be opened" in delivered.problems()

    def test_one_row_less_with_right_checksums(self, delivered: Delivered) -> None:
        """The case no checksum can find: what was written is not what was promised."""
        file = delivered.manifest.files[0].model_copy(update={"rows": 1001})
        lying = delivered.manifest.model_copy(update={"rows": 1001, "files": (file,)})
        write_manifest(delivered.store, delivered.key, lying)
        assert delivered.problems() == "file-1: holds 1000 rows, the manifest says 1001"

    def test_nothing_of_a_row_is_told(self, delivered: Delivered) -> None:
        delivered.path.write_bytes(b'id,note\n"personal"x,y\n{"personal":\n')
        assert "personal" not in delivered.problems()


def test_sums_of_the_manifest_itself(tmp_path: Path) -> None:
    contents = as_csv(), as_csv()
    manifest = manifest_of("csv", "none", *contents)
    store = LocalStore(tmp_path)
    deliver(store, manifest.model_copy(update={"rows": 1, "bytes": 2}), *contents)
    problems = verify(store, "uid/1/s/manifest.json").problems
    assert problems == (
        "manifest: rows is 1, its files add up to 2000",
        f"manifest: bytes is 2, its files add up to {2 * len(as_csv())}",
    )


@pytest.mark.parametrize("guards", [True, False])
@pytest.mark.parametrize("file_format", ["csv", "xlsx"])
def test_a_header_that_begins_like_a_formula(tmp_path: Path, file_format: str, guards: bool) -> None:
    headers = ("@instagram", "-1", "note")
    columns = tuple(OutputColumn(f"c{place}", header, ColumnType.TEXT) for place, header in enumerate(headers))
    options = FormatOptions(columns=columns, max_bytes=10**9, guard_formulas=guards)
    sink = io.BytesIO()
    open_format(file_format, options).open(sink).close()
    manifest = manifest_of(file_format, "none", sink.getvalue(), rows=0).model_copy(
        update={"columns": headers, "guard_formulas": guards}
    )
    deliver(LocalStore(tmp_path), manifest, sink.getvalue())
    assert verify(LocalStore(tmp_path), "uid/1/s/manifest.json").problems == ()


def test_on_s3(s3_bucket: S3Bucket) -> None:
    store = S3Store(s3_bucket.client, s3_bucket.name, "p")
    contents = gzip.compress(as_csv()), gzip.compress(as_csv())
    manifest = manifest_of("csv", "gzip", *contents)
    deliver(store, manifest, *contents)
    assert verify(store, "uid/1/s/manifest.json").sound
    store.delete(manifest.files[1].key)
    (problem,) = verify(store, "uid/1/s/manifest.json").problems
    assert problem.startswith("file-2: cannot be opened")


class TestManifest:
    def test_round_trip(self, tmp_path: Path) -> None:
        manifest, store = manifest_of("csv", "none", b"x"), LocalStore(tmp_path)
        write_manifest(store, "m.json", manifest)
        assert read_manifest(store, "m.json") == manifest
        assert json.loads((tmp_path / "m.json").read_bytes())["version"] == 1

    def test_one_of_many_files_is_read_whole(self, tmp_path: Path) -> None:
        """Above 64 MiB it was read cut."""
        store, key = LocalStore(tmp_path), "m.json"
        manifest = manifest_of("csv", "none", b"x")
        write_manifest(store, key, manifest)
        text = (tmp_path / key).read_bytes()
        (tmp_path / key).write_bytes(b" " * (65 * 2**20) + text)
        assert read_manifest(store, key) == manifest

    @pytest.mark.parametrize("text", [b"", b"{}", b"[]", b'{"version": 2}', b'{"uid": "personal-thing"}'])
    def test_no_manifest(self, tmp_path: Path, text: bytes) -> None:
        (tmp_path / "m.json").write_bytes(text)
        with pytest.raises(ExportFailure, match="wrong") as caught:
            read_manifest(LocalStore(tmp_path), "m.json")
        assert caught.value.code == FailureCode.INTERNAL_ERROR
        assert "personal" not in str(caught.value)

    def test_naive_instants_are_refused(self) -> None:
        values = manifest_of("csv", "none", b"x").model_dump()
        with pytest.raises(ValidationError, match="snapshot_at"):
            Manifest.model_validate(values | {"snapshot_at": NOW.replace(tzinfo=None)})


def count(content: bytes, file_format: str, columns: tuple[str, ...] = COLUMNS, delimiter: str = ",") -> int:
    return count_rows(
        io.BytesIO(content),  # type: ignore[arg-type]
        file_format=file_format,
        compressed=False,
        columns=columns,
        csv_delimiter=delimiter,
    )


class TestCountsOfTheEnginesFiles:
    @pytest.mark.parametrize("rows", [0, 1, 2500])
    @pytest.mark.parametrize(
        ("file_format", "extra"),
        [*((name, {}) for name in FORMATS), ("csv", {"csv_bom": True, "csv_delimiter": ";", "compression": "gzip"}),
         ("json", {"compression": "gzip"}), ("ndjson", {"compression": "gzip"})],
    )  # fmt: skip
    def test_agree(self, file_format: str, extra: dict[str, Any], rows: int) -> None:
        columns = OutputColumn("id", "id", ColumnType.INTEGER), OutputColumn("note", 'the; "note"', ColumnType.TEXT)
        options = FormatOptions(columns=columns, max_bytes=10**9, **extra)
        notes = [None, "", "=1+1", "two\nlines", 'q"uo;te,', "\r\n", "]},{", "ñ"]
        batch = pa.record_batch(
            {
                "id": pa.array(range(rows), pa.int64()),
                "note": pa.array([notes[n % 8] for n in range(rows)], "string"),
            }
        )
        writing, sink = open_format(file_format, options), io.BytesIO()
        writer = writing.open(sink)
        if rows:
            assert writer.write(writing.encode(batch, Counter()), 0) == rows
        writer.close()
        counted = count_rows(
            io.BytesIO(sink.getvalue()),  # type: ignore[arg-type]
            file_format=file_format,
            compressed=options.compression == "gzip",
            columns=[column.header for column in columns],
            csv_delimiter=options.csv_delimiter,
        )
        assert counted == rows


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def nested(depth: int) -> str:
    return '{"a":[' * depth + "1" + "]}" * depth


class TestCountsOfLongNumbersAndDeepJson:
    """Both are sound JSON, and Python's own reader gives up on them."""

    @pytest.mark.parametrize("number", ["9" * 5000, "-" + "9" * 5000, "1." + "9" * 5000, "1e" + "9" * 5000])
    @pytest.mark.parametrize("depth", [0, 3000])
    def test_are_counted(self, number: str, depth: int) -> None:
        row = f'{{"n":{number},"d":{nested(depth) if depth else "null"}}}'
        assert count(f"{row}\n{row}\n".encode(), "ndjson") == 2
        assert count(f"[{row},\n{row}]".encode(), "json") == 2

    @pytest.mark.parametrize("damage", ["]", "}", ",", "x", '"', "1 1", "{1}", '{"a"}', "[1,]", '{"a":1,}'])
    def test_damage_deep_inside_is_found(self, damage: str) -> None:
        text = nested(3000).replace("1", damage)
        for content, name in ((f"{text}\n", "ndjson"), (f"[{text}]", "json")):
            with pytest.raises(UnreadableFileError):
                count(content.encode(), name)

    @settings(max_examples=50)
    @given(st.dictionaries(st.text(max_size=3), JSON_VALUES, max_size=4), st.data())
    def test_the_deep_reader_reads_what_pythons_reads(self, value: dict[str, Any], data: st.DataObject) -> None:
        text = json.dumps(value, ensure_ascii=data.draw(st.booleans()), indent=data.draw(st.sampled_from([None, 1])))
        assert end_of_deep_object(text + " ]", 0) == len(text)
        cut = data.draw(st.integers(0, len(text) - 1))
        with pytest.raises(json.JSONDecodeError):
            end_of_deep_object(text[:cut], 0)


@pytest.mark.parametrize("rows", [1, 5000])
def test_text_in_parquet_that_is_not_utf_8_is_damage(rows: int) -> None:
    texts = pa.array([b"sound"] * (rows - 1) + [b"Jos\xe9"], pa.binary()).view(pa.string())
    sink = io.BytesIO()
    pa.parquet.write_table(pa.table({"id": list(map(str, range(rows))), "note": texts}), sink)
    with pytest.raises(UnreadableFileError, match="damaged"):
        count(sink.getvalue(), "parquet")


@pytest.mark.parametrize(
    "header",
    ["_x0041_", "_x005F_x0041_", "a\x01b", "\ufffe", "h" * 40_000, "", " lead", "a\rb\nc", "&<>", "=1", "\ufeffx"],
)
@pytest.mark.parametrize("file_format", FORMATS)
def test_no_header_is_taken_for_damage(file_format: str, header: str) -> None:
    headers = (header, f"{header}2")
    columns = tuple(OutputColumn(f"c{place}", name, ColumnType.TEXT) for place, name in enumerate(headers))
    options = FormatOptions(columns=columns, max_bytes=10**9, guard_formulas=False)
    writing, sink = open_format(file_format, options), io.BytesIO()
    writer = writing.open(sink)
    writer.write(writing.encode(pa.record_batch({"c0": ["x"], "c1": ["y"]}), Counter()), 0)
    writer.close()
    assert count(sink.getvalue(), file_format, headers) == 1


class TestCounts:
    @pytest.mark.parametrize(
        ("text", "rows"),
        [(b"[]", 0), (b" [ ] \n", 0), (b'[{"a":1}]', 1), (b'[\n{"a":"]},{"},\n{"b":[1,{"c":2}]}\n]\n', 2)],
    )
    def test_json(self, text: bytes, rows: int) -> None:
        assert count(text, "json") == rows

    @pytest.mark.parametrize(
        "text", [b"", b"[", b'[{"a":1}', b'[{"a":1},]', b'[{"a":1}]x', b"[1]", b'[{"a":1} {"b":2}]', b'{"a":1}', b"[{]"]
    )
    def test_no_json(self, text: bytes) -> None:
        with pytest.raises(UnreadableFileError):
            count(text, "json")

    def test_json_objects_across_windows(self) -> None:
        big = json.dumps({"a": "x" * 3_000_000})
        assert count(f"[{big},\n{big}, {big}]".encode(), "json") == 3

    def test_csv_of_one_column_with_empty_values(self) -> None:
        assert count(b"note\n\n\nx\n", "csv", ("note",)) == 3

    def test_csv_with_another_delimiter_and_long_cells(self) -> None:
        assert count(b'id;note\n1;"a\nb"\n2;"' + b"x" * 200_000 + b'"\n', "csv", delimiter=";") == 2

    @pytest.mark.parametrize(
        "text", [b"", b"other,header\n", b"id,note\n1\n", b'id,note\n1,"a\n', b"id,note\n\xff,1\n"]
    )
    def test_no_csv(self, text: bytes) -> None:
        with pytest.raises(UnreadableFileError):
            count(text, "csv")

    def test_ndjson_without_its_last_line_end(self) -> None:
        with pytest.raises(UnreadableFileError, match="line 2 has no end"):
            count(b'{"a":1}\n{"a":2}', "ndjson")

    @pytest.mark.slow
    @pytest.mark.parametrize("file_format", ["csv", "json", "ndjson"])
    def test_memory_does_not_grow_with_the_file(self, file_format: str) -> None:
        class Endless(io.RawIOBase):
            """8 MB of rows that exist only while they are read."""

            def __init__(self) -> None:
                row = {"csv": b"1,aaaaaaaa\n", "json": b'{"a":"aaa"},\n', "ndjson": b'{"a":"aaaa"}\n'}[file_format]
                self._left, self._block = 80, row * (100_000 // len(row))
                self._rest = {"csv": b"id,note\n", "json": b"[", "ndjson": b""}[file_format]

            def readable(self) -> bool:
                return True

            def readinto(self, buffer: Any, /) -> int:
                if not self._rest and self._left:
                    self._left -= 1
                    self._rest = self._block
                    if not self._left and file_format == "json":
                        self._rest = b'{"a":1}]'
                taken = self._rest[: len(buffer)]
                self._rest = self._rest[len(taken) :]
                buffer[: len(taken)] = taken
                return len(taken)

        tracemalloc.start()
        try:
            rows = count_rows(Endless(), file_format=file_format, compressed=False, columns=COLUMNS)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert rows > 500_000
        assert peak < 6 * 2**20
