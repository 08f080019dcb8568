"""Run metadata: what the UI shows and plots of each stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import dagster as dg

from export_pipeline.catalog.model import Dataset
from export_pipeline.failures import FailureCode
from export_pipeline.orchestration.runbook import RUNBOOK
from export_pipeline.orchestration.tags import tag_value
from export_pipeline.stages.manifest import Manifest, ManifestFile
from export_pipeline.storage.store import Store
from export_pipeline.timing import StageSeconds, Stopwatch

# The datasets as assets: where the UI plots rows, bytes and seconds of their exports over time.


GROUP = "exports"


def asset_key(dataset: str) -> dg.AssetKey:
    """The asset of a dataset's exports."""
    return dg.AssetKey([GROUP, dataset])


def dataset_assets(catalog: Mapping[str, Dataset]) -> list[dg.AssetSpec]:
    """One asset a dataset; it cannot be materialized by hand, an export of anybody's does."""
    return [
        dg.AssetSpec(asset_key(name), group_name=GROUP, description=_described(name, dataset))
        for name, dataset in catalog.items()
    ]


def _described(name: str, dataset: Dataset) -> str:
    return (
        f"Exports of **{dataset.title.en}** by all organizations. Each finished one reports `rows`, `bytes`, "
        "`files` and `seconds` (from the snapshot to the manifest), plotted here over time. "
        f"Its runs have the tag `export/dataset: {name}`."
    )


MAX_LINKS = 50
"""Parts of one export that are linked by name; an event with thousands of links would only slow the UI."""
Metadata = dict[str, dg.MetadataValue]


def stage_metadata(watch: Stopwatch, parts: StageSeconds, *, rows: int, size: int, files: int) -> Metadata:
    """Rows, bytes, files, seconds and rates of one stage, and the seconds of the parts of the work so far."""
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
    """What each part of the work took, and which one bounded it; parts that did nothing are left out."""
    metadata: Metadata = {
        f"{part}_seconds": dg.MetadataValue.float(round(value, 3)) for part, value in seconds if value > 0
    }
    metadata["bound_by"] = dg.MetadataValue.text(seconds.bound_by)
    return metadata


def object_links(store: Store, files: Sequence[ManifestFile]) -> Metadata:
    """Links to the objects for operators with credentials; unsigned."""
    return {f"object_{file.name}": dg.MetadataValue.url(store.object_url(file.key)) for file in files[:MAX_LINKS]}


def failure_metadata(code: FailureCode, uid: str | None) -> Metadata:
    """What the failed step says beside its message: whose turn it is, what to press, and where the row is read."""
    advice = RUNBOOK[code]
    metadata: Metadata = {
        "error_code": dg.MetadataValue.text(code.value),
        "fault": dg.MetadataValue.text(code.fault.value),
        "turn": dg.MetadataValue.text(advice.turn.value),
        # Text: the event log hides Markdown behind a button.
        "what_to_press": dg.MetadataValue.text(advice.plain),
    }
    if uid is not None:
        metadata["row"] = row_metadata(uid)
    return metadata


def row_metadata(uid: str) -> dg.MetadataValue:
    """The command that shows the row of a run's request."""
    return dg.MetadataValue.text(f"export-pipeline status {tag_value(uid)}")


def materialization(manifest: Manifest, parts: StageSeconds) -> dg.AssetMaterialization:
    """One export as a materialization of its dataset, so that the UI plots rows, bytes and seconds over time."""
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
            # Not the parts' seconds: the page would get five plots more, and publish has them.
            "bound_by": dg.MetadataValue.text(parts.bound_by),
        },
    )
