"""How far a request is, over all its stages.

What belongs here: one number of rows done and one of rows to do, and the time that is left. What does not: drawing a
bar.
"""

from __future__ import annotations

from datetime import datetime

from export_pipeline.requests.enums import RequestStatus, Stage
from export_pipeline.requests.model import RequestState

_COUNTED_STAGES = (Stage.FILTER_ENTITIES, Stage.SERIALIZE, Stage.UPLOAD)


def overall_progress(state: RequestState) -> tuple[int, int | None]:
    """Rows done over all three counted stages, and their total; the total is unknown before the snapshot.

    Never the whole before the request is completed: the link must work first.
    """
    if state.rows_total is None:
        return 0, None
    total = state.rows_total * len(_COUNTED_STAGES)
    if state.status in (RequestStatus.COMPLETED, RequestStatus.EXPIRED):
        return total, total
    if state.stage in _COUNTED_STAGES:
        return _COUNTED_STAGES.index(state.stage) * state.rows_total + min(state.rows_done, state.rows_total), total
    return (total, total + 1) if state.stage is Stage.PUBLISH else (0, total)


def eta_seconds(state: RequestState, now: datetime) -> float | None:
    """About how long a running request still takes, if it goes on as so far; None before that can be told."""
    done, total = overall_progress(state)
    if state.status is not RequestStatus.RUNNING or state.started_at is None or not done or total is None:
        return None
    elapsed = (now - state.started_at).total_seconds()
    return max(0.0, elapsed * (total - done) / done)
