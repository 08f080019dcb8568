"""Check delivered files against their manifest, with other code than wrote them."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any, BinaryIO

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats.csv_format import guarded_header
from export_pipeline.stages.manifest import Manifest, ManifestFile, read_manifest
from export_pipeline.stages.row_counts import UnreadableFileError, count_rows
from export_pipeline.storage.store import Store

_CHUNK = 2**20


@dataclass(frozen=True)
class Report:
    """The findings; ``problems`` is empty if the files are what the manifest says.

    ``rows`` and ``bytes`` are counted in the files, not read from the manifest.
    """

    files: int
    rows: int
    bytes: int
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(store: Store, manifest_key: str) -> Report:
    """Read every file of an export in constant memory, count its rows, and compare it with the manifest.

    Raises ``ExportFailure``: ``store_unavailable`` if the store fails, or the manifest cannot be read.
    """
    manifest = read_manifest(store, manifest_key)
    reports = [_verify_file(store, manifest, file) for file in manifest.files]
    problems = [problem for report in reports for problem in report.problems]
    # Where the manifest contradicts itself: ordinals, and sums over its files.
    if [file.ordinal for file in manifest.files] != list(range(1, len(manifest.files) + 1)):
        problems.append("manifest: the files are not numbered from 1 without a gap")
    for name in ("rows", "bytes"):
        total, parts = getattr(manifest, name), sum(getattr(file, name) for file in manifest.files)
        if total != parts:
            problems.append(f"manifest: {name} is {total}, its files add up to {parts}")
    rows, size = sum(report.rows for report in reports), sum(report.bytes for report in reports)
    return Report(len(reports), rows, size, tuple(problems))


def _verify_file(store: Store, manifest: Manifest, file: ManifestFile) -> Report:
    try:
        stream = store.open(file.key)
    except ExportFailure as failure:
        if failure.code is not FailureCode.STORE_REFUSED:
            raise
        return Report(1, 0, 0, (f"{file.name}: cannot be opened: {failure.message}",))
    problems, counted, digesting = list[str](), 0, DigestingReader(stream)
    with stream:
        try:
            counted = count_rows(
                digesting,
                file_format=manifest.format,
                compressed=manifest.compression == "gzip",
                columns=_headers(manifest),
                csv_delimiter=manifest.csv_delimiter,
            )
        except UnreadableFileError as error:
            problems.append(f"{file.name}: {error}")
        else:
            if counted != file.rows:
                problems.append(f"{file.name}: holds {counted} rows, the manifest says {file.rows}")
        # A reader may stop before the end (a workbook, a broken file), but the checksum covers all bytes.
        while digesting.read(_CHUNK):
            pass
    if digesting.bytes != file.bytes:
        problems.append(f"{file.name}: has {digesting.bytes} bytes, the manifest says {file.bytes}")
    if digesting.sha256 != file.sha256:
        problems.append(f"{file.name}: its SHA-256 is not the manifest's")
    return Report(1, counted, digesting.bytes, tuple(problems))


def _headers(manifest: Manifest) -> list[str]:
    """The columns as the files have them: CSV guards headers like cells."""
    guards = manifest.format == "csv" and manifest.guard_formulas
    return [guarded_header(column) if guards else column for column in manifest.columns]


class DigestingReader(io.RawIOBase):
    """Reads a stream, counting and hashing the bytes, so that one read serves both checks."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self._digest = hashlib.sha256()
        self.bytes = 0

    @property
    def sha256(self) -> str:
        """SHA-256 (hex) of the bytes read so far."""
        return self._digest.hexdigest()

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read, count and hash."""
        view = memoryview(buffer)
        chunk = self._stream.read(len(view))
        view[: len(chunk)] = chunk
        self._digest.update(chunk)
        self.bytes += len(chunk)
        return len(chunk)
