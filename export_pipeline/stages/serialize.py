"""The op ``serialize``: write a staged shard into finished files, still in the staging store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict

from export_pipeline.catalog.model import Dataset
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats import open_format
from export_pipeline.formats.splitter import write_files
from export_pipeline.stages.plan import ExportPlan, format_options
from export_pipeline.storage.staging import Staging, one_try
from export_pipeline.timing import StageSeconds, Timer


class StagedFile(BaseModel):
    """A finished file that waits for its upload: its number in the shard (from 1), and what must arrive."""

    model_config = ConfigDict(frozen=True)

    ordinal: int
    key: str
    rows: int
    bytes: int
    sha256: str
    fingerprint: str | None = None
    """The staging store's fingerprint when the file was finished."""


class SerializedFiles(BaseModel):
    """The files of one shard; ``counters`` counts what was altered (cells cut, formulas guarded and so on)."""

    model_config = ConfigDict(frozen=True)

    files: tuple[StagedFile, ...]
    extension: str
    media_type: str
    counters: dict[str, int]
    seconds: StageSeconds = StageSeconds()

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Bytes of all files, as delivered."""
        return sum(file.bytes for file in self.files)


def serialize_shard(
    plan: ExportPlan,
    dataset: Dataset,
    staging: Staging,
    *,
    shard: int,
    staged_key: str,
    rows: int,
    progress: Callable[[int], None],
) -> SerializedFiles:
    """Write a shard's files, none larger than the plan's ceiling.

    Raises ``ExportFailure``: what the format and the staging store raise; ``count_mismatch`` if the files do not hold
    exactly the shard's rows.
    """
    file_format = open_format(plan.format, format_options(plan, dataset))
    whole, reading, writing = Timer(), Timer(), Timer()

    @contextmanager
    def create(ordinal: int) -> Iterator[BinaryIO]:
        with staging.create(f"{prefix}/{ordinal:05d}") as sink:
            yield writing.sink(sink)

    with one_try(staging, f"{plan.prefix}/files/{shard:05d}") as prefix, whole:
        written = list(
            write_files(
                reading.each(staging.read_batches(staged_key)),
                file_format,
                create,
                key=dataset.key,
                max_bytes=plan.max_bytes,
                progress=progress,
            )
        )
    compressing = file_format.packing.seconds
    result = SerializedFiles(
        files=tuple(
            StagedFile(key=key, fingerprint=staging.fingerprint(key), **vars(file))
            for key, file in ((f"{prefix}/{file.ordinal:05d}", file) for file in written)
        ),
        extension=file_format.extension,
        media_type=file_format.media_type,
        counters={name: sum(file.counters[name] for file in written) for name in file_format.counters},
        seconds=StageSeconds(
            stage=reading.seconds + writing.seconds,
            serialize=max(0.0, whole.seconds - reading.seconds - writing.seconds - compressing),
            compress=compressing,
        ),
    )
    if result.rows != rows:
        raise ExportFailure(
            FailureCode.COUNT_MISMATCH, f"{result.rows} rows were written of a shard of {rows}. Retry the export."
        )
    return result
