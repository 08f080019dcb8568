"""The op ``upload``: copy finished files from staging to the store, under their final names and keys."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from zoneinfo import ZoneInfo

from export_pipeline.formats.base import MEDIA_TYPES
from export_pipeline.requests.download_links import StoredFile
from export_pipeline.stages.manifest import ManifestFile, export_prefix, file_name
from export_pipeline.stages.plan import ExportPlan
from export_pipeline.stages.serialize import SerializedFiles, StagedFile
from export_pipeline.storage.staging import Staging
from export_pipeline.storage.store import ObjectDescription, Store


def upload_files(
    store: Store,
    staging: Staging,
    plan: ExportPlan,
    output: SerializedFiles,
    *,
    shard: int,
    shards: int,
    snapshot_at: datetime,
    progress: Callable[[int], None],
) -> tuple[ManifestFile, ...]:
    """Upload one shard's files; ``progress`` gets the rows done so far, and may raise to stop.

    A file that an earlier try uploaded is sent again, under the same key.
    """
    prefix = export_prefix(plan.uid, plan.attempt, plan.key_secret)
    day = snapshot_at.astimezone(ZoneInfo(plan.organization_time_zone)).date()
    uploaded: list[ManifestFile] = []
    rows_before = 0
    extension, media_type, content_encoding = _served_as(plan, output)
    for file in output.files:
        part = _part(file, output, shard, shards)
        name = file_name(plan.dataset, day, plan.uid, part, extension, style=plan.name_style)
        placed = ManifestFile(
            ordinal=file.ordinal,
            key=f"{prefix}/{name}",
            name=name,
            rows=file.rows,
            bytes=file.bytes,
            sha256=file.sha256,
            media_type=media_type,
            content_encoding=content_encoding,
        )

        def bytes_done(done: int, before: int = rows_before, file: StagedFile = file) -> None:
            progress(before + file.rows * done // max(file.bytes, 1))

        _upload(store, staging, file, placed, bytes_done)
        rows_before += file.rows
        progress(rows_before)
        uploaded.append(placed.model_copy(update={"fingerprint": store.fingerprint(placed.key)}))
    return tuple(uploaded)


def _served_as(plan: ExportPlan, output: SerializedFiles) -> tuple[str, str, str | None]:
    """Extension, media type and content encoding that the request's layout demands."""
    if plan.compression != "gzip":
        return output.extension, output.media_type, None
    plain = output.extension.removesuffix(".gz")
    if plan.content_encoded:
        return plain, MEDIA_TYPES[plain], "gzip"
    return f"{plain}.{plan.gzip_suffix}", output.media_type, None


def _part(file: StagedFile, output: SerializedFiles, shard: int, shards: int) -> str | None:
    """The part in the file name, sorted like the rows: ``00001``, or ``00001-00001`` with several shards."""
    if shards > 1:
        return f"{shard:05d}-{file.ordinal:05d}"
    return f"{file.ordinal:05d}" if len(output.files) > 1 else None


def _upload(
    store: Store, staging: Staging, file: StagedFile, placed: ManifestFile, progress: Callable[[int], None]
) -> None:
    path = staging.path(file.key)
    # A linked file is not hashed again, so it must be the very file that was hashed as it was written.
    is_untouched = path is not None and staging.fingerprint(file.key) == file.fingerprint
    if path is not None and is_untouched and store.link_file(path, describe(placed), size=file.bytes):
        progress(file.bytes)
        return
    with staging.open(file.key) as source:
        store.put(source, describe(placed), size=file.bytes, sha256=file.sha256, progress=progress)


def describe(file: ManifestFile | StoredFile) -> ObjectDescription:
    """The name of a delivered file and how it is served."""
    return ObjectDescription(
        key=file.key, download_name=file.name, media_type=file.media_type, content_encoding=file.content_encoding
    )
