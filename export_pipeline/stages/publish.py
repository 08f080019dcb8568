"""The op ``publish``: check that every file arrived, write the manifest, and complete the request."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID

import sqlalchemy as sa

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests import billing, notifications, transitions
from export_pipeline.requests.download_links import StoredFile
from export_pipeline.requests.models import load_request
from export_pipeline.requests.validation.mail import is_silent, recipients_of_files
from export_pipeline.stages.manifest import MANIFEST_NAME, Manifest, ManifestFile, export_prefix, write_manifest
from export_pipeline.stages.plan import ExportPlan
from export_pipeline.storage.store import Store


def make_manifest(
    plan: ExportPlan,
    *,
    rows: int,
    snapshot_at: datetime,
    files: Sequence[ManifestFile],
    counters: Sequence[Mapping[str, int]],
) -> Manifest:
    """The manifest of all shards' files, in the order of the rows, numbered from 1.

    Raises ``ExportFailure``: ``count_mismatch`` if the files do not hold exactly the snapshot's ``rows``.
    """
    delivered = sum(file.rows for file in files)
    if delivered != rows:
        raise ExportFailure(
            FailureCode.COUNT_MISMATCH, f"{delivered} rows were delivered of a snapshot of {rows}. Retry the export."
        )
    numbered = tuple(file.model_copy(update={"ordinal": number}) for number, file in enumerate(files, start=1))
    selected = plan.model_dump(mode="json", include={"filters", "list_ids", "segments"})
    totals: Counter[str] = Counter()
    for one in counters:
        totals.update(one)
    return Manifest(
        uid=UUID(plan.uid),
        organization_id=plan.organization_id,
        attempt=plan.attempt,
        dataset=plan.dataset,
        catalog_version=plan.dataset_version,
        format=plan.format,
        compression=plan.compression,
        layout=plan.layout,
        columns=tuple(column.header for column in plan.columns),
        filters_sha256=hashlib.sha256(json.dumps(selected, sort_keys=True).encode()).hexdigest(),
        rows=rows,
        bytes=sum(file.bytes for file in files),
        files=numbered,
        snapshot_at=snapshot_at,
        created_at=datetime.now(UTC),
        time_zone=plan.time_zone,
        guard_formulas=plan.options.guard_formulas,
        csv_delimiter=plan.options.csv_delimiter,
        counters=dict(totals),
    )


def publish(store: Store, plan: ExportPlan, manifest: Manifest) -> str:
    """Check that every file is in the store in full, then write the manifest, last; returns the manifest's key.

    Raises ``ExportFailure``: ``checksum_mismatch`` if a file is not there in full, or was replaced after its upload.
    """
    for file in manifest.files:
        if store.size(file.key) != file.bytes or store.fingerprint(file.key) != file.fingerprint:
            raise ExportFailure(
                FailureCode.CHECKSUM_MISMATCH,
                f"File {file.ordinal} of {len(manifest.files)} is not in the store as it was sent. Retry the export.",
            )
    # A completed export has only one manifest: an attempt that died in ``publish`` may have left another.
    with suppress(ExportFailure):  # the rest is deleted when the export expires
        for attempt in range(1, plan.attempt):
            for left in list(store.keys(f"{plan.uid}/{attempt}/")):
                store.delete(left)
    key = f"{export_prefix(plan.uid, plan.attempt, plan.key_secret)}/{MANIFEST_NAME}"
    write_manifest(store, key, manifest)
    return key


def complete_request(
    database: sa.Engine, request_id: int, manifest: Manifest, key: str, *, run_id: str, retention_days: float
) -> None:
    """In one transaction: mark the request ``completed``, enqueue its mails and reserve their price."""
    with database.begin() as connection:
        transitions.complete(
            connection,
            request_id,
            run_id=run_id,
            files=[StoredFile(**file.model_dump()) for file in manifest.files],
            manifest_key=key,
            expires_at=datetime.now(UTC) + timedelta(days=retention_days),
        )
        request = load_request(connection, request_id)
        recipients = recipients_of_files(request)
        notifications.enqueue(connection, request.id, recipients)
        if is_silent(request):
            billing.release(connection, request.uid)
        # A re-execution from a failure has nothing reserved: it was released when the request failed.
        billing.reserve(connection, request.organization_id, request.uid, recipients)
