"""What steps hand to each other: references, never data, and nothing personal; and where the references are kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Self
from urllib.parse import urlsplit

import dagster as dg
from dagster_aws.s3 import S3PickleIOManager
from pydantic import BaseModel, ConfigDict

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.orchestration.execution import outside_op
from export_pipeline.orchestration.resources import OUTPUTS, ExportResource
from export_pipeline.settings import Settings
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
    """The snapshot: its exact number of rows, and its instant (UTC)."""

    plan: PlanReference
    rows: int
    snapshot_at: datetime
    seconds: StageSeconds = StageSeconds()

    @classmethod
    def of(cls, plan: PlanReference, staged: StagedRows) -> Self:
        """The reference to what was staged for a plan."""
        return cls(plan=plan, rows=staged.rows, snapshot_at=staged.snapshot_at, seconds=staged.seconds)


class ShardReference(_Reference):
    """A staged shard: its number from 1 to ``shards``, its staging key, its rows, and the rows of the shards before."""

    plan: PlanReference
    snapshot_at: datetime
    ordinal: int
    shards: int
    key: str
    rows: int
    rows_before: int


class SerializedShard(_Reference):
    """A shard whose files are finished and wait in staging."""

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


class StepOutputs(S3PickleIOManager):
    """Dagster's IO manager for S3. A failure of S3 ends the step as a failure of its op does: the row says why."""

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
                "The output of an earlier step is gone. Re-execute the run from its start, and find out what deletes "
                "objects under EXPORT_STAGING_URL.",
            ) from None


def io_manager_of(settings: Settings, exports: ExportResource) -> dict[str, Any]:
    """The IO manager as a resource: on S3 if staging is, else Dagster's own on the disk of its instance."""
    parts = urlsplit(settings.staging_url)
    if parts.scheme != "s3":
        return {}
    prefix = "/".join(part for part in (parts.path.strip("/"), OUTPUTS) if part)
    return {
        "io_manager": StepOutputs(exports=exports, s3_resource=exports.s3, s3_bucket=parts.netloc, s3_prefix=prefix)
    }
