"""What ops hand to each other: references, never data, and nothing personal."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self

import dagster as dg
from dagster_aws.s3 import S3PickleIOManager
from pydantic import BaseModel, ConfigDict

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.orchestration.execution import outside_op
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.stages.filter_entities import StagedRows
from export_pipeline.stages.manifest import ManifestFile
from export_pipeline.stages.serialize import SerializedFiles
from export_pipeline.storage.s3_client import STAGING, translated
from export_pipeline.timing import StageSeconds


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
    def of(cls, plan: PlanReference, staged: StagedRows) -> Self:
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

    def uploaded(self, files: tuple[ManifestFile, ...], seconds: StageSeconds) -> "UploadedShard":
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


# What the steps of an export hand on, kept on S3; a failure of S3 ends the step as one of its op does.


class StepOutputs(S3PickleIOManager):
    """Dagster's IO manager for S3. The row says why the export failed if S3 refuses or does not answer."""

    exports: dg.ResourceDependency[ExportResource]

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write an output of a step."""
        with outside_op(context.step_context, self.exports), _translated():
            super().handle_output(context, obj)

    def load_input(self, context: dg.InputContext) -> Any:
        """Read an input of a step."""
        with outside_op(context.step_context, self.exports), _translated():
            return super().load_input(context)


@contextmanager
def _translated() -> Iterator[None]:
    with translated(STAGING):
        try:
            yield
        except FileNotFoundError:
            raise ExportFailure(
                FailureCode.STAGING_LOST,
                "What an earlier step handed on is gone. Re-execute the run from its start, and find out who deletes "
                "under EXPORT_STAGING_URL.",
            ) from None
