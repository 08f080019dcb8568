"""The ops of the export job: each opens its stage, calls plain functions of ``stages``, and returns a reference.

Their docstrings are the UI's descriptions, in Markdown, for operators who do not read code.

References are what steps hand to each other: never data, and nothing personal.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime

import dagster as dg
from pydantic import BaseModel, ConfigDict

from export_pipeline.database.enums import NotificationStatus, Stage
from export_pipeline.failures import ExportFailure
from export_pipeline.messaging.failure_mail import has_failed
from export_pipeline.orchestration import tags
from export_pipeline.orchestration.execution import Work, send_failure_mail, stage, without_ownership
from export_pipeline.orchestration.metadata import materialization, object_links, stage_metadata, status_command
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.stages.filter_entities import stage_rows
from export_pipeline.stages.manifest import ManifestFile
from export_pipeline.stages.notify_recipients import mail_recipients
from export_pipeline.stages.plan import load_plan, plan_request, selection
from export_pipeline.stages.publish import complete_request, make_manifest
from export_pipeline.stages.publish import publish as publish_export
from export_pipeline.stages.serialize import SerializedFiles, serialize_shard
from export_pipeline.stages.upload import upload_files
from export_pipeline.timing import StageSeconds, Stopwatch


class _Reference(BaseModel):
    model_config = ConfigDict(frozen=True)


class PlanReference(_Reference):
    """A planned request, and the staging key of its plan."""

    request_id: int
    key: str


class SnapshotReference(_Reference):
    """The snapshot: its exact number of rows, and its instant (UTC)."""

    plan: PlanReference
    rows: int
    snapshot_at: datetime
    seconds: StageSeconds = StageSeconds()


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


class UploadedShard(_Reference):
    """A shard whose files are in the store; ordinals count within the shard."""

    plan: PlanReference
    ordinal: int
    files: tuple[ManifestFile, ...]
    counters: dict[str, int]
    seconds: StageSeconds = StageSeconds()
    """Of serializing and uploading."""


class PlanConfig(dg.Config):
    """The run's only configuration: the request."""

    request_id: int


@dg.op
def plan(context: dg.OpExecutionContext, config: PlanConfig, exports: ExportResource) -> PlanReference:
    """Checks the request against the catalog and writes the plan. Nothing is read yet.

    **If it fails**, the requester has to correct the request. The row's `message` says how; it may repeat what was
    typed, so it is not shown here.
    """
    with stage(context, exports, config.request_id, Stage.PLAN) as work:
        made, key, recipients = plan_request(exports, config.request_id, run_id=context.run_id, attempt=work.attempt)
        context.add_output_metadata(
            {
                "dataset": made.dataset,
                "format": made.format,
                "compression": made.compression,
                "columns": len(made.columns),
                "recipients": recipients,
                "max_file_bytes": made.max_bytes,
                "row": status_command(made.uid),
            }
        )
        return PlanReference(request_id=made.request_id, key=key)


@dg.op(out={"shards": dg.DynamicOut(ShardReference), "snapshot": dg.Out(SnapshotReference)})
def filter_entities(
    context: dg.OpExecutionContext, planned: PlanReference, exports: ExportResource
) -> Iterator[dg.DynamicOutput[ShardReference] | dg.Output[SnapshotReference]]:
    """Reads the organization's rows in **one database snapshot** and stages them as Arrow.

    From here on the number of rows is exact.

    **If it fails**, check the source database: is it up, may the export user read, was the statement time-out reached?
    """
    with stage(context, exports, planned.request_id, Stage.FILTER_ENTITIES) as work:
        made = load_plan(exports.staging, planned.key)
        watch = Stopwatch()
        context.log.info("Counting the rows ...")
        staged = stage_rows(
            exports.source,
            selection(made, exports.catalog),
            exports.staging,
            made.prefix,
            max_bytes=made.max_bytes,
            shard_rows=exports.settings.shard_rows,
            snapshot_taken=lambda rows, instant: _counted(context, exports, work, rows, instant),
            progress=work.heartbeat.report,
        )
        metadata = stage_metadata(watch, staged.seconds, rows=staged.rows, size=staged.bytes, files=len(staged.shards))
    rows_before = 0
    for shard in staged.shards:
        reference = ShardReference(
            plan=planned,
            snapshot_at=staged.snapshot_at,
            ordinal=shard.ordinal,
            shards=len(staged.shards),
            key=shard.key,
            rows=shard.rows,
            rows_before=rows_before,
        )
        rows_before += shard.rows
        yield dg.DynamicOutput(
            reference, mapping_key=f"{shard.ordinal:05d}", output_name="shards", metadata={"rows": shard.rows}
        )
    snapshot = SnapshotReference(plan=planned, rows=staged.rows, snapshot_at=staged.snapshot_at, seconds=staged.seconds)
    yield dg.Output(snapshot, output_name="snapshot", metadata=metadata)


def _counted(
    context: dg.OpExecutionContext, exports: ExportResource, work: Work, rows: int, snapshot_at: datetime
) -> None:
    """Store the snapshot's row count on the request and tag the run's size class for the concurrency limits."""
    work.heartbeat.snapshot_taken(rows, snapshot_at)
    size = tags.size_class(rows, exports.settings.large_rows)
    if context.run.tags.get(tags.SIZE_CLASS) != size:
        with suppress(Exception):  # the export continues; the queue counts it by its expected size
            context.instance.add_run_tags(context.run_id, {tags.SIZE_CLASS: size})


@dg.op
def serialize(context: dg.OpExecutionContext, shard: ShardReference, exports: ExportResource) -> SerializedShard:
    """Writes the files of a shard in the requested format, none larger than `max_file_size_mb`.

    Counters in the output (`cut_cells`, `guarded_cells`, …) count the cells that were changed so that the format can
    hold them.
    """
    with stage(context, exports, shard.plan.request_id, Stage.SERIALIZE) as work:
        made = load_plan(exports.staging, shard.plan.key)
        watch = Stopwatch()
        output = serialize_shard(
            made,
            exports.catalog[made.dataset],
            exports.staging,
            shard=shard.ordinal,
            staged_key=shard.key,
            rows=shard.rows,
            progress=lambda rows: work.heartbeat.report(shard.rows_before + rows),
        )
        metadata = stage_metadata(watch, output.seconds, rows=output.rows, size=output.bytes, files=len(output.files))
        context.add_output_metadata({**metadata, **output.counters})
        return SerializedShard(shard=shard, output=output)


@dg.op
def upload(context: dg.OpExecutionContext, serialized: SerializedShard, exports: ExportResource) -> UploadedShard:
    """Uploads the files of a shard to the store with checksums.

    The output links to the objects (unsigned, for operators).

    **If it fails**, check the store: does the bucket exist, may the exporter write, is there space? Then
    *Re-execute → From failure*: the rows are not read again.
    """
    shard = serialized.shard
    with stage(context, exports, shard.plan.request_id, Stage.UPLOAD) as work:
        watch = Stopwatch()
        files = upload_files(
            exports.store,
            exports.staging,
            load_plan(exports.staging, shard.plan.key),
            serialized.output,
            shard=shard.ordinal,
            shards=shard.shards,
            snapshot_at=shard.snapshot_at,
            progress=lambda rows: work.heartbeat.report(shard.rows_before + rows),
        )
        output, seconds = serialized.output, StageSeconds(upload=watch.seconds)
        metadata = stage_metadata(watch, seconds, rows=output.rows, size=output.bytes, files=len(files))
        context.add_output_metadata(metadata | object_links(exports.store, files))
        return UploadedShard(
            plan=shard.plan,
            ordinal=shard.ordinal,
            files=files,
            counters=output.counters,
            seconds=output.seconds + seconds,
        )


@dg.op
def publish(
    context: dg.OpExecutionContext, snapshot: SnapshotReference, uploaded: list[UploadedShard], exports: ExportResource
) -> PlanReference:
    """Verifies that all files arrived, writes the **manifest last**, and marks the request `completed`.

    After that, this run cannot make the export again.
    """
    planned = snapshot.plan
    with stage(context, exports, planned.request_id, Stage.PUBLISH) as work:
        if work.completed is not None:
            # An earlier try completed the row and died before Dagster recorded it: nothing is left to publish.
            return planned
        watch = Stopwatch()
        made = load_plan(exports.staging, planned.key)
        in_order = sorted(uploaded, key=lambda shard: shard.ordinal)
        manifest = make_manifest(
            made,
            rows=snapshot.rows,
            snapshot_at=snapshot.snapshot_at,
            files=[file for shard in in_order for file in shard.files],
            counters=[shard.counters for shard in in_order],
        )
        work.heartbeat.check()
        key = publish_export(exports.store, made, manifest)
        days = exports.settings.retention_days
        complete_request(
            exports.database, planned.request_id, manifest, key, run_id=context.run_id, retention_days=days
        )
        with suppress(ExportFailure):  # else the janitor deletes it: the export is complete
            exports.staging.delete_tree(made.prefix)
        parts = sum((shard.seconds for shard in uploaded), snapshot.seconds)
        metadata = stage_metadata(watch, parts, rows=manifest.rows, size=manifest.bytes, files=len(manifest.files))
        context.add_output_metadata(metadata | {"manifest": dg.MetadataValue.url(exports.store.object_url(key))})
        context.log_event(materialization(manifest, parts))
        return planned


@dg.op
def notify_recipients(context: dg.OpExecutionContext, published: PlanReference, exports: ExportResource) -> None:
    """Mails links or files to every recipient, **once**. The files are already there: the row is `completed`.

    **If it fails**, check the mail provider. `notify` runs try again by themselves. A re-execution mails only the
    recipients who have no mail yet.
    """
    with stage(context, exports, published.request_id, Stage.NOTIFY_RECIPIENTS) as work:
        _notify(context, exports, work)


@dg.op
def resume_notification(context: dg.OpExecutionContext, config: PlanConfig, exports: ExportResource) -> None:
    """Sends the mails that the request's own run did not send before it ended.

    They go to the recipients of a completed request, or to the requester of a failed one.

    `export_reconciler` starts these runs 2, 4, 8, … minutes apart, at most six. **Nothing to press** before the sixth
    has failed; then bring the mail provider back and *Re-execute* it. No mail is sent twice.
    """
    with without_ownership(context, exports, config.request_id):
        if has_failed(exports.database, config.request_id):
            _add_mail_metadata(context, Stopwatch(), send_failure_mail(exports, config.request_id))
            return
    with stage(context, exports, config.request_id, Stage.NOTIFY_RECIPIENTS) as work:
        _notify(context, exports, work)


def _notify(context: dg.OpExecutionContext, exports: ExportResource, work: Work) -> None:
    watch, check, warn = Stopwatch(), work.heartbeat.check, context.log.warning
    counts = mail_recipients(exports, work.request_id, run_id=context.run_id, check=check, warn=warn)
    _add_mail_metadata(context, watch, counts)


def _add_mail_metadata(
    context: dg.OpExecutionContext, watch: Stopwatch, counts: Mapping[NotificationStatus, int]
) -> None:
    context.add_output_metadata(
        {"seconds": round(watch.seconds, 3)} | {f"mails_{status}": number for status, number in counts.items()}
    )
