"""How far a request is, over all its stages.

What belongs here: one number of rows done and one of rows to do. What does not: drawing a bar.
"""

from __future__ import annotations

from export_pipeline.requests.model import RequestState
from export_pipeline.requests.tables import RequestStatus, Stage

FINISHED = (RequestStatus.COMPLETED, RequestStatus.FAILED, RequestStatus.CANCELED, RequestStatus.EXPIRED)
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
