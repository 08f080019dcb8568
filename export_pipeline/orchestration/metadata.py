"""Metadata of steps and assets: what the UI shows and plots of each stage and dataset."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg
import sqlalchemy as sa

from export_pipeline.catalog.model import Dataset
from export_pipeline.database.engine import why_unavailable
from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.orchestration.runbook import RUNBOOK
from export_pipeline.orchestration.tags import tag_value
from export_pipeline.requests import transitions
from export_pipeline.stages.manifest import Manifest, ManifestFile
from export_pipeline.storage.store import Store
from export_pipeline.timing import StageSeconds, Stopwatch

GROUP = "exports"
MAX_LINKS = 50
"""Files of one export that get a link: an event with thousands of links would only slow the UI down."""
Metadata = dict[str, dg.MetadataValue]


def asset_key(dataset: str) -> dg.AssetKey:
    """The asset of a dataset's exports."""
    return dg.AssetKey([GROUP, dataset])


def dataset_assets(catalog: Mapping[str, Dataset]) -> list[dg.AssetSpec]:
    """One asset per dataset, on which the UI plots its exports. Exports materialize it; operators cannot."""
    return [
        dg.AssetSpec(asset_key(name), group_name=GROUP, description=_described(name, dataset))
        for name, dataset in catalog.items()
    ]


def _described(name: str, dataset: Dataset) -> str:
    return (
        f"Exports of **{dataset.title.en}** by all organizations. Each completed one reports `rows`, `bytes`, "
        "`files` and `seconds` (from the snapshot to the manifest), plotted here over time. "
        f"Its runs have the tag `export/dataset: {name}`."
    )


def stage_metadata(watch: Stopwatch, parts: StageSeconds, *, rows: int, size: int, files: int) -> Metadata:
    """Rows, bytes, files, seconds and rates of one stage, and the seconds of each part of the work so far."""
    seconds = max(watch.seconds, 1e-6)
    return {
        "rows": dg.MetadataValue.int(rows),
        "seconds": dg.MetadataValue.float(round(seconds, 3)),
        "rows_per_second": dg.MetadataValue.float(round(rows / seconds, 1)),
        "bytes": dg.MetadataValue.int(size),
        "bytes_per_second": dg.MetadataValue.float(round(size / seconds, 1)),
        "files": dg.MetadataValue.int(files),
        **_parts(parts),
    }


def _parts(seconds: StageSeconds) -> Metadata:
    """The seconds of each part of the work that did anything, and which part bounded it."""
    metadata: Metadata = {
        f"{part}_seconds": dg.MetadataValue.float(round(value, 3)) for part, value in seconds if value > 0
    }
    metadata["bound_by"] = dg.MetadataValue.text(seconds.bound_by)
    return metadata


def object_links(store: Store, files: Sequence[ManifestFile]) -> Metadata:
    """Unsigned links to the objects, for operators with credentials."""
    return {f"object_{file.name}": dg.MetadataValue.url(store.object_url(file.key)) for file in files[:MAX_LINKS]}


def failure_metadata(code: FailureCode, uid: str | None) -> Metadata:
    """Metadata of a failed step: its code, who has to act, what to press, and the command that shows the row."""
    advice = RUNBOOK[code]
    metadata: Metadata = {
        "error_code": dg.MetadataValue.text(code.value),
        "fault": dg.MetadataValue.text(code.fault.value),
        "turn": dg.MetadataValue.text(advice.turn.value),
        # Text, not Markdown: the event log hides Markdown behind a button.
        "what_to_press": dg.MetadataValue.text(advice.plain),
    }
    if uid is not None:
        metadata["row"] = row_metadata(uid)
    return metadata


def row_metadata(uid: str) -> dg.MetadataValue:
    """The command that shows the request's row."""
    return dg.MetadataValue.text(f"export-pipeline status {tag_value(uid)}")


def failure_of(error: Exception) -> ExportFailure:
    """The failure that an exception means; ``transitions.INTERNAL`` if it is unexpected."""
    if isinstance(error, ExportFailure):
        return error
    why = why_unavailable(error) if isinstance(error, sa.exc.DBAPIError) else None
    return transitions.INTERNAL if why is None else ExportFailure(FailureCode.DATABASE_UNAVAILABLE, why)


def describe(failure: ExportFailure) -> str:
    """The text for the event log. A requester's message may repeat typed text or a row's key: it stays on the row."""
    if failure.fault is not Fault.REQUESTER:
        return f"{failure.code}: {failure.message}"
    column = re.split(r"[.\[]", failure.field or "the request")[0]
    return f"{failure.code}: {column} has to be corrected by the requester; export_requests.message says how."


def metadata_of(error: Exception, uid: str | None = None) -> Metadata:
    """Metadata of a failed step: its code, who has to act, what to press; for a bug, also where it was raised.

    Args:
        error: why it failed.
        uid: of the request, if the step worked on one.
    """
    failure = failure_of(error)
    metadata = failure_metadata(failure.code, uid)
    if failure is transitions.INTERNAL:
        metadata["exception"] = dg.MetadataValue.text(type(error).__qualname__)
        metadata["raised_at"] = dg.MetadataValue.md(f"```\n{_places(error)}\n```")
    return metadata


def _places(error: BaseException) -> str:
    """A traceback of types, files, lines and functions, without any message or value."""
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None:
        frames = traceback.extract_tb(current.__traceback__)
        lines += [f"{type(current).__qualname__}", *(f"  {f.filename}:{f.lineno} {f.name}" for f in frames)]
        current = current.__cause__ or current.__context__
    return "\n".join(lines)


def materialization(manifest: Manifest, parts: StageSeconds) -> dg.AssetMaterialization:
    """One export as a materialization of its dataset's asset."""
    seconds = (datetime.now(UTC) - manifest.snapshot_at).total_seconds()
    return dg.AssetMaterialization(
        asset_key=asset_key(manifest.dataset),
        description=f"{manifest.format} export {manifest.uid}",
        metadata={
            "rows": dg.MetadataValue.int(manifest.rows),
            "bytes": dg.MetadataValue.int(manifest.bytes),
            "files": dg.MetadataValue.int(len(manifest.files)),
            "seconds": dg.MetadataValue.float(round(seconds, 3)),
            "request_uid": dg.MetadataValue.text(str(manifest.uid)),
            "format": dg.MetadataValue.text(manifest.format),
            # Without the parts' seconds, which would add five plots to the page; the step `publish` has them.
            "bound_by": dg.MetadataValue.text(parts.bound_by),
        },
    )
