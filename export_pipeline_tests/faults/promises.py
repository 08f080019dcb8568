"""What is promised of a request whatever was done to the processes, held against database, store and mailboxes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import dict_row

from export_pipeline.orchestration.resources import CATALOG_TREE
from export_pipeline_tests.faults.exports import BALANCE, Asked
from export_pipeline_tests.faults.supervisor import staged_files
from export_pipeline_tests.stack import Stack

Files = list[tuple[int, int, int, str]]
"""Ordinal, rows, bytes and SHA-256 of each delivered file."""
_NOTHING_WAITS = """
SELECT count(*) FROM export_requests r WHERE r.uid::text = ANY(%(uids)s) AND (
    r.status IN ('queued', 'running') OR EXISTS (
        SELECT FROM export_notifications n WHERE n.request_id = r.id AND n.status IN ('pending', 'sending')))
"""
_JANITOR = """
from datetime import timedelta
from export_pipeline.definitions import defs
from export_pipeline.orchestration import jobs
from export_pipeline.stages import cleanup
cleanup.KEEP_LEFTOVERS = jobs.KEEP_UPLOADS = timedelta(0)  # a day later
assert defs.resolve_job_def("janitor").execute_in_process().success
"""


@dataclass
class Broken:
    """What became of promises; empty lists if they were kept."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unknown: int = 0
    """Recipients of whom the ledger says, as documented, that nobody knows whether they have their mail."""

    def __bool__(self) -> bool:
        return bool(self.lost or self.doubled)


def query(stack: Stack, statement: str, **values: Any) -> list[dict[str, Any]]:
    with psycopg.connect(stack.database_url, row_factory=dict_row) as connection:
        return connection.execute(statement.encode(), values).fetchall()


def at_rest(stack: Stack, asked: Iterable[Asked]) -> bool:
    """Nothing of these requests is still to be done."""
    (found,) = query(stack, _NOTHING_WAITS, uids=[one.uid for one in asked])
    return found["count"] == 0


def files_of(stack: Stack, uid: str) -> Files:
    found = query(
        stack,
        "SELECT f.ordinal, f.rows, f.bytes, f.sha256 FROM export_files f JOIN export_requests r ON r.id = f.request_id "
        "WHERE r.uid::text = %(uid)s ORDER BY f.ordinal",
        uid=uid,
    )
    return [(row["ordinal"], row["rows"], row["bytes"], row["sha256"]) for row in found]


def broken(stack: Stack, asked: Asked, undisturbed: Files) -> Broken:
    """Everything of one request that is not as in a run that nobody disturbed."""
    found = Broken()
    row = stack.row(asked.uid)
    if row["status"] != "completed":
        found.lost.append(f"it is {row['status']} ({row['error_code']})")
        return found
    if files_of(stack, asked.uid) != undisturbed:
        found.lost.append("its files are not those of an undisturbed run")
    _look_at_store(stack, asked, row["attempt"], found)
    _look_at_mails(stack, asked, row, found)
    (events,) = query(
        stack,
        "SELECT count(*) FROM export_events WHERE request_uid::text = %(uid)s AND kind = 'completed'",
        uid=asked.uid,
    )
    if events["count"] != 1:
        (found.doubled if events["count"] else found.lost).append(f"it completed {events['count']} times")
    return found


def _look_at_store(stack: Stack, asked: Asked, attempt: int, found: Broken) -> None:
    """What the rows of ``export_files`` say is what the store serves."""
    listed = query(
        stack,
        "SELECT f.key, f.sha256 FROM export_files f JOIN export_requests r ON r.id = f.request_id "
        "WHERE r.uid::text = %(uid)s",
        uid=asked.uid,
    )
    objects = {key for key in stack.objects(asked.uid) if key.startswith(f"exports/{asked.uid}/{attempt}/")}
    for file in listed:
        key = f"exports/{file['key']}"
        if key not in objects:
            found.lost.append("a file is not in the store")
            continue
        body = stack.bucket.client.get_object(Bucket=stack.bucket.name, Key=key)["Body"].read()
        if hashlib.sha256(body).hexdigest() != file["sha256"]:
            found.lost.append("a file in the store is another")
    if len(objects) != len(listed) + 1:
        found.doubled.append(f"{len(objects)} objects for {len(listed)} files and a manifest")


def _look_at_mails(stack: Stack, asked: Asked, row: dict[str, Any], found: Broken) -> None:
    """One mail and one charge a recipient; a mail may be missing only where the ledger and the row say so."""
    ledger = query(
        stack,
        "SELECT n.recipient, n.status, c.status AS charge FROM export_notifications n "
        "LEFT JOIN email_charges c ON c.request_uid = %(uid)s::uuid AND c.recipient = n.recipient "
        "WHERE n.request_id = %(id)s AND n.kind = 'ready'",
        uid=asked.uid,
        id=row["id"],
    )
    if sorted(one["recipient"] for one in ledger) != sorted(asked.recipients):
        found.lost.append("the ledger does not name everybody")
    for one in ledger:
        mails = len(stack.mails(one["recipient"]))
        if mails > 1:
            found.doubled.append(f"{mails} mails to one recipient")
        if one["status"] == "unknown":
            found.unknown += 1
            if "it is not known" not in (row["message"] or ""):
                found.lost.append("the row does not say that a mail may be missing")
        elif one["status"] != "sent" or mails == 0:
            found.lost.append(f"a mail is {one['status']} and {mails} arrived")
        if one["charge"] != "charged":
            found.lost.append(f"a mail's charge is {one['charge']}")


def unbalanced(stack: Stack) -> list[str]:
    """Organizations whose balance did not go down by exactly what is charged or reserved."""
    rows = query(
        stack,
        "SELECT o.id, o.email_balance + count(c.id) FILTER (WHERE c.status IN ('charged', 'reserved')) AS sum "
        "FROM organizations o LEFT JOIN email_charges c ON c.organization_id = o.id GROUP BY o.id, o.email_balance",
    )
    return [row["id"] for row in rows if row["sum"] != BALANCE]


def left_behind(stack: Stack, asked: Sequence[Asked]) -> list[str]:
    """Run the janitor as if a day had passed; whatever is no delivered file or manifest after that."""
    environment = {**os.environ, **stack.environment}
    cleaned = subprocess.run(
        [sys.executable, "-c", _JANITOR], env=environment, capture_output=True, text=True, check=False
    )
    assert cleaned.returncode == 0, cleaned.stderr
    left = [f"staging: {path}" for path in staged_files(stack) if not path.startswith(f"{CATALOG_TREE}/")]
    for one in asked:
        row = stack.row(one.uid)
        delivered = f"exports/{one.uid}/{row['attempt']}/" if row["status"] == "completed" else None
        left += [key for key in stack.objects(one.uid) if delivered is None or not key.startswith(delivered)]
    left += [f"upload: {upload['Key']}" for upload in stack.bucket.uploads()]
    whole = {f"{stack.bucket.name}/{key}" for key in stack.bucket.keys()}  # noqa: SIM118 - no mapping
    disk = {f"{stack.bucket.name}/{key}" for key in stack.bucket.files()}
    return left + sorted(disk - whole)
