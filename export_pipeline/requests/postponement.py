"""Requests whose source or store does not answer: how long they wait, and what ends the wait early."""

from __future__ import annotations

import random
from collections.abc import Collection

import sqlalchemy as sa

from export_pipeline.failures import FailureCode
from export_pipeline.requests.enums import RequestStatus
from export_pipeline.requests.tables import export_requests

FIRST_WAIT_SECONDS = 15.0
LONGEST_WAIT_SECONDS = 3600.0
MOST_POSTPONEMENTS = 31
"""The waits of so many come to about a day."""
READ = (FailureCode.SOURCE_UNAVAILABLE, FailureCode.STAGING_UNAVAILABLE)
"""What certainly answers again once an export has read its rows."""

_rows = export_requests.c


def wait_seconds(postponements: int) -> float:
    """How long a request waits that was postponed so often before; no two at once."""
    return min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(postponements, 16)) * random.uniform(1.0, 1.2)  # noqa: S311


def wake(connection: sa.Connection, codes: Collection[FailureCode] | None = None) -> None:
    """What did not answer does again: requests that wait for it, by failure code, may be claimed now."""
    waiting = sa.select(_rows.id).where(_rows.postponed_at.is_not(None), _rows.status == RequestStatus.QUEUED)
    if codes is not None:
        waiting = waiting.where(_rows.error_code.in_(codes))
    connection.execute(
        export_requests.update()
        .where(_rows.id.in_(waiting.with_for_update(skip_locked=True)))
        .values(not_before=None, postponed_at=None)
    )
