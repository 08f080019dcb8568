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
Metadata = dict[str, dg.MetadataValue | str | int | float]


def asset_key(dataset: str) -> dg.AssetKey:
    """The asset of a dataset's exports."""
    return dg.AssetKey([GROUP, dataset])


def dataset_assets(catalog: Mapping[str, Dataset]) -> list[dg.AssetSpec]:
    """One asset per dataset, on which the UI plots its exports. Exports materialize it; operators cannot."""
    text = (
        "Exports of **{title}** by all organizations. Each completed one reports `rows`, `bytes`, `files` and "
        "`seconds` (from the snapshot to the manifest), plotted here over time. "
        "Its runs have the tag `export/dataset: {name}`."
    )
    return [
        dg.AssetSpec(asset_key(name), group_name=GROUP, description=text.format(title=dataset.title.en, name=name))
        for name, dataset in catalog.items()
    ]


def stage_metadata(watch: Stopwatch, parts: StageSeconds, *, rows: int, size: int, files: int) -> Metadata:
    """Rows, bytes, files, seconds and rates of one stage, the seconds of each part of the work, and the slowest."""
    seconds = max(watch.seconds, 1e-6)
    return {
        "rows": rows,
        "seconds": round(seconds, 3),
        "rows_per_second": round(rows / seconds, 1),
        "bytes": size,
        "bytes_per_second": round(size / seconds, 1),
        "files": files,
        **{f"{part}_seconds": round(value, 3) for part, value in parts if value > 0},
        "bound_by": parts.bound_by,
    }


def object_links(store: Store, files: Sequence[ManifestFile]) -> Metadata:
    """Unsigned links to the objects, for operators with credentials."""
    return {f"object_{file.name}": dg.MetadataValue.url(store.object_url(file.key)) for file in files[:MAX_LINKS]}


def status_command(uid: str) -> str:
    """The command that shows the request's row."""
    return f"export-pipeline status {tag_value(uid)}"


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
    """Metadata of a failed step: its code, who has to act, what to press; for a bug, also where it was raised."""
    failure = failure_of(error)
    advice = RUNBOOK[failure.code]
    metadata: Metadata = {
        "error_code": failure.code.value,
        "fault": failure.fault.value,
        "turn": advice.turn.value,
        # Text, not Markdown: the event log hides Markdown behind a button.
        "what_to_press": advice.plain,
    }
    if uid is not None:
        metadata["row"] = status_command(uid)
    if failure is transitions.INTERNAL:
        metadata["exception"] = type(error).__qualname__
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
            "rows": manifest.rows,
            "bytes": manifest.bytes,
            "files": len(manifest.files),
            "seconds": round(seconds, 3),
            "request_uid": str(manifest.uid),
            "format": manifest.format,
            # Without the parts' seconds, which would add five plots to the page; the step `publish` has them.
            "bound_by": parts.bound_by,
        },
    )
