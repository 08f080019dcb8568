"""What a step that failed says: a failure in words of our own, and its metadata.

What belongs here: the way from an exception to what the event log may show of it. What does not: the row and the retry
(``stage``), what there is to press (``runbook``).

Nothing personal leaves: an unexpected exception is told by its type and its places in the code, never by its message.
"""

from __future__ import annotations

import re
import traceback

import dagster as dg
import sqlalchemy as sa

from export_pipeline.failures import ExportFailure, FailureCode, Fault
from export_pipeline.orchestration.metadata import Metadata, failure_metadata
from export_pipeline.requests import states
from export_pipeline.requests.database import why_unavailable

POSTPONED_UNTIL = "postponed_until"
"""Metadata of a failed step whose run put its request back into the queue: nobody has to do anything."""


def failure_of(error: Exception) -> ExportFailure:
    """The failure that an exception means; ``states.INTERNAL`` if it is none that was expected."""
    if isinstance(error, ExportFailure):
        return error
    why = why_unavailable(error) if isinstance(error, sa.exc.DBAPIError) else None
    return states.INTERNAL if why is None else ExportFailure(FailureCode.DATABASE_UNAVAILABLE, why)


def told(failure: ExportFailure) -> str:
    """What the event log says. A requester's message may repeat what was typed or a row's key: it stays on the row."""
    if failure.fault is not Fault.REQUESTER:
        return f"{failure.code}: {failure.message}"
    column = re.split(r"[.\[]", failure.field or "the request")[0]
    return f"{failure.code}: {column} has to be corrected by the requester; export_requests.message says how."


def metadata_of(error: Exception, uid: str | None = None) -> Metadata:
    """What the failed step says beside its message; of a bug, also where it was raised.

    Args:
        error: why it failed.
        uid: of the request that it worked on, if there is one.
    """
    failure = failure_of(error)
    metadata = failure_metadata(failure.code, uid)
    if failure is states.INTERNAL:
        metadata["exception"] = dg.MetadataValue.text(type(error).__qualname__)
        metadata["raised_at"] = dg.MetadataValue.md(f"```\n{_places(error)}\n```")
    return metadata


def _places(error: BaseException) -> str:
    """Where an exception came from: files, lines and functions, without its message or any value."""
    lines: list[str] = []
    current: BaseException | None = error
    while current is not None:
        frames = traceback.extract_tb(current.__traceback__)
        lines += [f"{type(current).__qualname__}", *(f"  {f.filename}:{f.lineno} {f.name}" for f in frames)]
        current = current.__cause__ or current.__context__
    return "\n".join(lines)
