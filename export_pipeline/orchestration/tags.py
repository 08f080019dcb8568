"""Run tags: how a run is found by its request, and filtered by organization, dataset, format."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import timedelta

import dagster as dg

from export_pipeline.failures import FailureCode
from export_pipeline.requests.queue import Claim

REQUEST_ID = "export/request_id"
REQUEST_UID = "export/request_uid"
ATTEMPT = "export/attempt"
CLAIM = "export/claim"
ORGANIZATION = "export/organization"
DATASET = "export/dataset"
FORMAT = "export/format"
SIZE_CLASS = "export/size_class"
ERROR_CODE = "export/error_code"
FAULT = "export/fault"
POSTPONED = "export/postponed"
"""What did not answer: the request waits in the queue, and gets another run."""
NO_FAILURE = "none"
"""A re-execution gets the tags of the run that failed, and Dagster removes none: its own say that it did not fail."""
_FINAL = {"dagster/max_retries": "0"}
"""Ops retry what may pass and the reconciler what died: Dagster's run retries would repeat what is final."""
LONGEST_EXPORT = timedelta(days=7)
"""An export whose process is gone ends long before, by its heartbeat: this is for a run that nothing else judges."""
SMALL, LARGE = "small", "large"
"""What ``tag_concurrency_limits`` of dagster.yaml tells apart, so that those known to be large leave slots."""
MAX_LINEAGE = 50
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")


def export_job_tags() -> dict[str, str]:
    """What each run of an export carries."""
    return {**_FINAL, "dagster/max_runtime": str(int(LONGEST_EXPORT.total_seconds()))}


def upkeep_job_tags(longest: timedelta) -> dict[str, str]:
    """What each run of a job carries that serves all exports: it goes before them in the queue, and has an end."""
    return {**_FINAL, "dagster/priority": "10", "dagster/max_runtime": str(int(longest.total_seconds()))}


def size_class(rows: object, large_rows: int) -> str:
    """Of an export of so many rows; small if nobody knows yet."""
    # SQLite stores any text in a column of integers, and what is no number must not fail the tick of the others.
    return LARGE if isinstance(rows, int) and rows > large_rows else SMALL


def run_tags(claim: Claim, *, rows: int | None, large_rows: int) -> dict[str, str]:
    """The tags of a request's run; with more ``rows`` than ``large_rows`` it is large."""
    return {
        SIZE_CLASS: size_class(rows, large_rows),
        REQUEST_ID: str(claim.id),
        REQUEST_UID: tag_value(claim.uid),
        ATTEMPT: str(claim.attempt),
        CLAIM: tag_value(claim.claim_id),
        **found_by(claim.organization_id, claim.dataset, claim.format),
    }


def found_by(organization_id: object, dataset: object, file_format: object) -> dict[str, str]:
    """The tags that operators filter runs by."""
    return {
        ORGANIZATION: tag_value(organization_id),
        DATASET: tag_value(dataset),
        FORMAT: tag_value(file_format),
    }


def tag_value(value: object) -> str:
    """An id as a tag value; whatever does not look like an id (it was typed by somebody) as its digest.

    SQLite stores anything in a text column: what is no text must not spoil the claim of the others.
    """
    text = value if isinstance(value, str) else repr(value)
    if _PLAIN.fullmatch(text):
        return text
    return f"sha256:{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}"


def attempt_of(tags: Mapping[str, str]) -> int | None:
    """The attempt that a run was launched for; None if an operator launched it by hand."""
    value = tags.get(ATTEMPT, "")
    return int(value) if value.isdigit() else None


def failure_tags(code: FailureCode) -> dict[str, str]:
    """By which the list of runs shows and filters what failed and whose fault it is."""
    return {ERROR_CODE: code.value, FAULT: code.fault.value}


def inherited_failure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the run's failure tags are those of the run that it re-executes: no step of its own has failed."""
    if run.parent_run_id is None or run.tags.get(ERROR_CODE, NO_FAILURE) == NO_FAILURE:
        return False
    failed = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=1)
    return not failed.records


def lineage_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[str]:
    """The runs that this run re-executes: its parent, that one's parent, and so on."""
    lineage: list[str] = []
    parent = run.parent_run_id
    while parent is not None and parent not in lineage and len(lineage) < MAX_LINEAGE:
        lineage.append(parent)
        found = instance.get_run_by_id(parent)
        parent = found.parent_run_id if found is not None else None
    return lineage
