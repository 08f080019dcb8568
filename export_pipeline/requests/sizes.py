"""How many rows a request can be expected to have, before anything is read.

What belongs here: looking that up in what was answered before. What does not: what follows from it (orchestration).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import sqlalchemy as sa

from export_pipeline.requests.enums import RequestStatus
from export_pipeline.requests.tables import export_requests

LOOK_BACK = 200
"""Of an organization, so many of its last completed and of its last expired requests: its history grows for ever."""

_rows = export_requests.c
_ANSWERED = (RequestStatus.COMPLETED, RequestStatus.EXPIRED)


def expected(connection: sa.Connection, request_ids: Sequence[int], *, seconds: float) -> Iterator[tuple[int, int]]:
    """Give (id, rows) of each request of which it is known: by its attempt before, or its question's last answer.

    Takes no lock. One question a request, for ``seconds`` altogether: rows may hold megabytes of filters, and what is
    not known in time is left out.
    """
    ends = time.monotonic() + seconds
    for request_id in request_ids:
        if time.monotonic() >= ends:
            return
        rows: object = connection.execute(_QUESTION, {"request_id": request_id}).scalar()
        if isinstance(rows, int):  # SQLite stores any text in a column of integers
            yield request_id, rows


def _question() -> sa.Select[tuple[int]]:
    last = sa.union_all(*(_recent(status) for status in _ANSWERED)).subquery("last")
    same = [
        last.c.dataset == _rows.dataset,
        last.c.filters == _rows.filters,
        last.c.list_ids.is_not_distinct_from(_rows.list_ids),
        last.c.segment_ids.is_not_distinct_from(_rows.segment_ids),
    ]
    before = sa.select(last.c.row_count).where(*same).order_by(last.c.id.desc()).limit(1).scalar_subquery()
    return sa.select(sa.func.coalesce(_rows.rows_total, before)).where(_rows.id == sa.bindparam("request_id"))


def _recent(status: RequestStatus) -> sa.Select[tuple[int, str]]:
    """The last of one status, by the index on status, organization and id."""
    answered = export_requests.alias()
    told = [answered.c[name] for name in ("id", "dataset", "filters", "list_ids", "segment_ids", "row_count")]
    of_organization = sa.and_(answered.c.status == status, answered.c.organization_id == _rows.organization_id)
    recent = sa.select(*told).where(of_organization).correlate(export_requests)
    return sa.select(recent.order_by(answered.c.id.desc()).limit(LOOK_BACK).subquery())


_QUESTION = _question()
