"""What ops hand to each other: references, never data, and nothing personal.

What belongs here: small models of keys and counts; Dagster's IO manager writes them to disk or S3,
where any later process finds them ("re-execute from failure").
What does not: rows, filters, addresses (they are in the plan, in the staging store).
"""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from export_pipeline.delivery.manifest import ManifestFile
from export_pipeline.engine.extract import StagedRows
from export_pipeline.engine.serialize import SerializedFiles
from export_pipeline.engine.timing import StageSeconds


class _Reference(BaseModel):
    model_config = ConfigDict(frozen=True)


class PlanReference(_Reference):
    """A planned request, and the staging key of its plan."""

    request_id: int
    uid: str
    attempt: int
    key: str


class SnapshotReference(_Reference):
    """What the one snapshot held: its exact number of rows, and the instant (UTC)."""

    plan: PlanReference
    rows: int
    snapshot_at: datetime
    seconds: StageSeconds = StageSeconds()

    @classmethod
    def of(cls, plan: PlanReference, staged: StagedRows) -> SnapshotReference:
        """The snapshot that was staged for a plan."""
        return cls(plan=plan, rows=staged.rows, snapshot_at=staged.snapshot_at, seconds=staged.seconds)


class ShardReference(_Reference):
    """A staged shard: its place from 1 among ``shards``, its staging key, its rows, and those of the shards before."""

    plan: PlanReference
    snapshot_at: datetime
    ordinal: int
    shards: int
    key: str
    rows: int
    rows_before: int


class SerializedShard(_Reference):
    """A shard whose files are finished and wait in the staging store."""

    shard: ShardReference
    output: SerializedFiles

    def uploaded(self, files: tuple[ManifestFile, ...], seconds: StageSeconds) -> UploadedShard:
        """The same shard once its files are in the store; ``seconds`` are those of the upload."""
        return UploadedShard(
            plan=self.shard.plan,
            ordinal=self.shard.ordinal,
            files=files,
            counters=self.output.counters,
            seconds=self.output.seconds + seconds,
        )


class UploadedShard(_Reference):
    """A shard whose files are in the store; ordinals count within the shard."""

    plan: PlanReference
    ordinal: int
    files: tuple[ManifestFile, ...]
    counters: dict[str, int]
    seconds: StageSeconds = StageSeconds()
    """Of serializing and uploading."""


class PublishedExport(_Reference):
    """An export whose manifest is written."""

    plan: PlanReference
    manifest_key: str
