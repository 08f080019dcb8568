"""The ops of the export job: each opens its stage, calls plain functions, hands on a reference."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import dagster as dg

from export_pipeline.database.engine import reading
from export_pipeline.database.enums import NotificationStatus, Stage
from export_pipeline.failures import ExportFailure
from export_pipeline.messaging.failure_mail import has_failed
from export_pipeline.orchestration import descriptions, tags
from export_pipeline.orchestration.execution import Work, send_failure_mail, stage, without_ownership
from export_pipeline.orchestration.metadata import materialization, object_links, row_metadata, stage_metadata
from export_pipeline.orchestration.references import (
    PlanReference,
    PublishedExport,
    SerializedShard,
    ShardReference,
    SnapshotReference,
    UploadedShard,
)
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.requests import billing, notifications, ownership, transitions
from export_pipeline.requests.models import ExportRequest, load_request
from export_pipeline.requests.validation.mail import is_silent, recipients_of_files
from export_pipeline.requests.validation.request import admit
from export_pipeline.stages.filter_entities import Sharding, stage_rows
from export_pipeline.stages.manifest import Manifest, read_manifest
from export_pipeline.stages.notify_recipients import Announcement, notify, sender_for, undelivered
from export_pipeline.stages.plan import ExportPlan, load_plan, make_plan, save_plan, selection
from export_pipeline.stages.publish import delivered_files, make_manifest
from export_pipeline.stages.publish import publish as publish_export
from export_pipeline.stages.serialize import serialize_shard
from export_pipeline.stages.upload import upload_files
from export_pipeline.timing import StageSeconds, Stopwatch

NOTHING_TO_SAY = "Nothing matched, and the request asks for no mail then (empty_result)."


class PlanConfig(dg.Config):
    """The run's whole config: which row."""

    request_id: int


@dg.op(description=descriptions.PLAN)
def plan(context: dg.OpExecutionContext, config: PlanConfig, exports: ExportResource) -> PlanReference:
    """Preflight and plan."""
    with stage(context, exports, config.request_id, Stage.PLAN) as work:
        with reading(exports.database) as connection:
            request = load_request(connection, config.request_id)
            organization, checked = admit(connection, exports.organizations, exports.catalog, exports.settings, request)
        _pay_mails(context, exports, request, checked.recipients)
        made = make_plan(request, checked, organization, exports.source, work.attempt)
        key = save_plan(exports.staging, made)
        context.add_output_metadata(
            {
                "dataset": made.dataset,
                "format": made.format,
                "compression": made.compression,
                "columns": len(made.columns),
                "recipients": len(checked.recipients),
                "max_file_bytes": made.max_bytes,
                "row": row_metadata(made.uid),
            }
        )
        return PlanReference(request_id=made.request_id, uid=made.uid, attempt=made.attempt, key=key)


def _pay_mails(
    context: dg.OpExecutionContext, exports: ExportResource, request: ExportRequest, recipients: Sequence[str]
) -> None:
    """The mails are paid for before anything is read."""
    if not recipients:
        return
    with exports.database.begin() as connection:
        ownership.lock(connection, request.id, run_id=context.run_id)
        billing.reserve(connection, request.organization_id, request.uid, recipients)


@dg.op(
    description=descriptions.FILTER_ENTITIES,
    out={"shards": dg.DynamicOut(ShardReference), "snapshot": dg.Out(SnapshotReference)},
)
def filter_entities(
    context: dg.OpExecutionContext, planned: PlanReference, exports: ExportResource
) -> Iterator[dg.DynamicOutput[ShardReference] | dg.Output[SnapshotReference]]:
    """Read everything that will be exported."""
    with stage(context, exports, planned.request_id, Stage.FILTER_ENTITIES) as work:
        made = _plan(exports, planned)
        watch = Stopwatch()
        context.log.info("Counting the rows ...")
        staged = stage_rows(
            exports.source,
            selection(made, exports.catalog),
            exports.staging,
            made.prefix,
            sharding=Sharding(made.max_bytes, exports.settings.shard_rows),
            snapshot_taken=lambda rows, instant: _counted(context, exports, work, rows, instant),
            progress=work.pulse.report,
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
    yield dg.Output(SnapshotReference.of(planned, staged), output_name="snapshot", metadata=metadata)


def _counted(
    context: dg.OpExecutionContext, exports: ExportResource, work: Work, rows: int, snapshot_at: datetime
) -> None:
    """The snapshot is open: the row hears how many rows there are, Dagster's queue whether that is a large export."""
    work.pulse.snapshot_taken(rows, snapshot_at)
    size = tags.size_class(rows, exports.settings.large_rows)
    if context.run.tags.get(tags.SIZE_CLASS) != size:
        with suppress(Exception):  # the export goes on; the queue counts it as what it was expected to be
            context.instance.add_run_tags(context.run_id, {tags.SIZE_CLASS: size})


@dg.op(description=descriptions.SERIALIZE)
def serialize(context: dg.OpExecutionContext, shard: ShardReference, exports: ExportResource) -> SerializedShard:
    """Rows to files."""
    with stage(context, exports, shard.plan.request_id, Stage.SERIALIZE) as work:
        made = _plan(exports, shard.plan)
        watch = Stopwatch()
        output = serialize_shard(
            made,
            exports.catalog[made.dataset],
            exports.staging,
            shard=shard.ordinal,
            staged_key=shard.key,
            rows=shard.rows,
            progress=lambda rows: work.pulse.report(shard.rows_before + rows),
        )
        metadata = stage_metadata(watch, output.seconds, rows=output.rows, size=output.bytes, files=len(output.files))
        context.add_output_metadata(metadata | {name: dg.MetadataValue.int(n) for name, n in output.counters.items()})
        return SerializedShard(shard=shard, output=output)


@dg.op(description=descriptions.UPLOAD)
def upload(context: dg.OpExecutionContext, serialized: SerializedShard, exports: ExportResource) -> UploadedShard:
    """Files to the store."""
    shard = serialized.shard
    with stage(context, exports, shard.plan.request_id, Stage.UPLOAD) as work:
        watch = Stopwatch()
        files = upload_files(
            exports.store,
            exports.staging,
            _plan(exports, shard.plan),
            serialized.output,
            shard=shard.ordinal,
            shards=shard.shards,
            snapshot_at=shard.snapshot_at,
            progress=lambda rows: work.pulse.report(shard.rows_before + rows),
        )
        output, seconds = serialized.output, StageSeconds(upload=watch.seconds)
        metadata = stage_metadata(watch, seconds, rows=output.rows, size=output.bytes, files=len(files))
        context.add_output_metadata(metadata | object_links(exports.store, files))
        return serialized.uploaded(files, seconds)


@dg.op(description=descriptions.PUBLISH)
def publish(
    context: dg.OpExecutionContext,
    snapshot: SnapshotReference,
    uploaded: list[UploadedShard],
    exports: ExportResource,
) -> PublishedExport:
    """The commit point."""
    planned = snapshot.plan
    with stage(context, exports, planned.request_id, Stage.PUBLISH) as work:
        if work.completed is not None:
            # An earlier try completed the row and died before Dagster knew: there is nothing left to publish.
            return PublishedExport(plan=planned, manifest_key=work.completed)
        watch = Stopwatch()
        made = _plan(exports, planned)
        in_order = sorted(uploaded, key=lambda shard: shard.ordinal)
        manifest = make_manifest(
            made,
            rows=snapshot.rows,
            snapshot_at=snapshot.snapshot_at,
            files=[file for shard in in_order for file in shard.files],
            counters=[shard.counters for shard in in_order],
        )
        work.pulse.check()
        key = publish_export(exports.store, made, manifest)
        _complete(context, exports, planned, manifest, key)
        with suppress(ExportFailure):
            exports.staging.delete_tree(made.prefix)  # else the janitor does: the export is complete
        parts = sum((shard.seconds for shard in uploaded), snapshot.seconds)
        metadata = stage_metadata(watch, parts, rows=manifest.rows, size=manifest.bytes, files=len(manifest.files))
        context.add_output_metadata(metadata | {"manifest": dg.MetadataValue.url(exports.store.object_url(key))})
        context.log_event(materialization(manifest, parts))
        return PublishedExport(plan=planned, manifest_key=key)


def _complete(
    context: dg.OpExecutionContext, exports: ExportResource, planned: PlanReference, manifest: Manifest, key: str
) -> None:
    """The row says ``completed``, the ledger names everybody who is to be mailed and it is paid, in one transaction."""
    with exports.database.begin() as connection:
        transitions.complete(
            connection,
            planned.request_id,
            run_id=context.run_id,
            files=delivered_files(manifest),
            manifest_key=key,
            expires_at=datetime.now(UTC) + timedelta(days=exports.settings.retention_days),
        )
        request = load_request(connection, planned.request_id)
        recipients = recipients_of_files(request)
        notifications.enqueue(connection, request.id, recipients)
        if is_silent(request):
            billing.release(connection, request.uid)
        # Re-executed from a failure: what the plan op reserved was given back when the request failed.
        billing.reserve(connection, request.organization_id, request.uid, recipients)


@dg.op(description=descriptions.NOTIFY_RECIPIENTS)
def notify_recipients(context: dg.OpExecutionContext, published: PublishedExport, exports: ExportResource) -> None:
    """The mails."""
    with stage(context, exports, published.plan.request_id, Stage.NOTIFY_RECIPIENTS) as work:
        _notify(context, exports, work)


@dg.op(description=descriptions.RESUME_NOTIFICATION)
def resume_notification(context: dg.OpExecutionContext, config: PlanConfig, exports: ExportResource) -> None:
    """The mails that a dead run left."""
    with without_ownership(context, exports, config.request_id):
        if has_failed(exports.database, config.request_id):
            _add_mail_metadata(context, Stopwatch(), send_failure_mail(exports, config.request_id))
            return
    with stage(context, exports, config.request_id, Stage.NOTIFY_RECIPIENTS) as work:
        _notify(context, exports, work)


def _notify(context: dg.OpExecutionContext, exports: ExportResource, work: Work) -> None:
    watch = Stopwatch()
    with reading(exports.database) as connection:
        request = load_request(connection, work.request_id)
        organization = exports.organizations.get(connection, request.organization_id)
        sender, sender_lost = sender_for(connection, exports.organizations, request)
    announcement = Announcement(
        request_id=request.id,
        manifest=read_manifest(exports.store, request.manifest_key or ""),
        dataset=exports.catalog[request.dataset],
        recipients=recipients_of_files(request),
        locale=request.email_locale,
        time_zone=organization.time_zone,
        files_expire_at=request.expires_at or datetime.now(UTC),
        organization_name=organization.name,
        sender=sender,
        recurring_export_id=request.recurring_export_id,
    )
    counts: Mapping[NotificationStatus, int] = {}
    if announcement.recipients:  # else there may be no provider to open
        counts = notify(
            exports.database,
            exports.store,
            exports.mail,
            exports.settings,
            announcement,
            check=work.pulse.check,
            warn=context.log.warning,
        )
    silent = NOTHING_TO_SAY if is_silent(request) else None
    notes = [note for note in (undelivered(counts), sender_lost, silent) if note]
    with exports.database.begin() as connection:
        transitions.notified(connection, request.id, counts)
        transitions.note(connection, request.id, " ".join(notes) or None, run_id=context.run_id)
    _add_mail_metadata(context, watch, counts)


def _add_mail_metadata(
    context: dg.OpExecutionContext, watch: Stopwatch, counts: Mapping[NotificationStatus, int]
) -> None:
    context.add_output_metadata(
        {"seconds": round(watch.seconds, 3)} | {f"mails_{status}": number for status, number in counts.items()}
    )


def _plan(exports: ExportResource, planned: PlanReference) -> ExportPlan:
    return load_plan(exports.staging, planned.key)
