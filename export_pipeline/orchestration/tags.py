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
"""What did not answer. The request waits in the queue and gets another run."""
NO_FAILURE = "none"
"""A re-execution inherits the failed run's tags, and Dagster cannot remove tags: this value resets them."""
SMALL, LARGE = "small", "large"
"""Size classes for ``tag_concurrency_limits`` in dagster.yaml: large exports must leave slots for the others."""
MAX_LINEAGE = 50
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")


def job_tags(longest: timedelta) -> dict[str, str]:
    """Tags of each run of a job that may take so long."""
    # Ops retry what is transient and the reconciler what died: Dagster's run retries would repeat final failures.
    return {"dagster/max_retries": "0", "dagster/max_runtime": str(int(longest.total_seconds()))}


def size_class(rows: int | None, large_rows: int) -> str:
    """The size class of an export with so many rows; small if the number is not known yet."""
    return LARGE if rows is not None and rows > large_rows else SMALL


def run_tags(claim: Claim, *, rows: int | None, large_rows: int) -> dict[str, str]:
    """The tags of a request's run; large if ``rows`` exceeds ``large_rows``."""
    return {
        SIZE_CLASS: size_class(rows, large_rows),
        REQUEST_ID: str(claim.id),
        REQUEST_UID: tag_value(claim.uid),
        ATTEMPT: str(claim.attempt),
        CLAIM: tag_value(claim.claim_id),
        ORGANIZATION: tag_value(claim.organization_id),
        DATASET: tag_value(claim.dataset),
        FORMAT: tag_value(claim.format),
    }


def tag_value(text: str) -> str:
    """An id as a tag value; anything that does not look like an id (it was typed by a user) as its digest."""
    if _PLAIN.fullmatch(text):
        return text
    return f"sha256:{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]}"


def attempt_of(tags: Mapping[str, str]) -> int | None:
    """The attempt that a run was launched for; None if an operator launched it by hand."""
    value = tags.get(ATTEMPT, "")
    return int(value) if value.isdigit() else None


def failure_tags(code: FailureCode) -> dict[str, str]:
    """What failed and whose fault it is, for the UI's list of runs."""
    return {ERROR_CODE: code.value, FAULT: code.fault.value}


def inherited_failure(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether the run inherited its failure tags from the run that it re-executes: none of its own steps failed."""
    if run.parent_run_id is None or run.tags.get(ERROR_CODE, NO_FAILURE) == NO_FAILURE:
        return False
    failed = instance.get_records_for_run(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE, limit=1)
    return not failed.records


def lineage_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> list[str]:
    """The ids of the runs that this run re-executes: its parent, its parent's parent, and so on."""
    lineage: list[str] = []
    parent = run.parent_run_id
    while parent is not None and parent not in lineage and len(lineage) < MAX_LINEAGE:
        lineage.append(parent)
        found = instance.get_run_by_id(parent)
        parent = found.parent_run_id if found is not None else None
    return lineage
