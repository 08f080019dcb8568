"""Whether a run's silence is that of a step which waits for a worker.

What belongs here: reading that from the run's events. What does not: what follows from it (``mending``).

Beyond one machine a step may wait long: for a free Celery worker, for a pod to be scheduled. No op is at work then, so
nobody writes the row's heartbeat, and the run is healthy all the same.
"""

from __future__ import annotations

from collections import Counter
from typing import cast

import dagster as dg
from dagster._core.events import EngineEventData

_TOLD = {
    dg.DagsterEventType.ENGINE_EVENT,  # of Celery: the marker starts when a step is queued, ends when one takes it
    dg.DagsterEventType.STEP_WORKER_STARTING,
    dg.DagsterEventType.STEP_WORKER_STARTED,
}
_QUEUE_WAIT = "celery_queue_wait"


def has_waiting_step(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the run handed out a step that no worker has begun yet."""
    handed_out: Counter[str] = Counter()
    for entry in instance.all_logs(run_id, of_type=_TOLD):
        event = entry.dagster_event
        if event is None or event.step_key is None:
            continue
        if event.event_type is dg.DagsterEventType.ENGINE_EVENT:
            data = cast("EngineEventData", event.event_specific_data)
            handed_out[event.step_key] += (data.marker_start == _QUEUE_WAIT) - (data.marker_end == _QUEUE_WAIT)
        else:
            started = event.event_type is dg.DagsterEventType.STEP_WORKER_STARTED
            handed_out[event.step_key] += -1 if started else 1
    return any(count > 0 for count in handed_out.values())
