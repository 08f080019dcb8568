"""Whether a run's silence is that of a step which waits for a worker.

What belongs here: reading that from the run's events. What does not: what follows from it (``mending``).

Beyond one machine a step may wait long: for a free Celery worker, for a pod to be scheduled. No op is at work then, so
nobody writes the row's heartbeat, and the run is healthy all the same.
"""

from __future__ import annotations

import time
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


LONGEST_WAIT_SECONDS = 6 * 3600.0
"""A step that nobody began for so long is taken for lost: a worker killed between taking and beginning it, or a queue
that lost it, tells nobody."""


def has_waiting_step(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the run handed out a step in the last ``LONGEST_WAIT_SECONDS`` that no worker has begun yet."""
    handed_out: Counter[str] = Counter()
    since: dict[str, float] = {}
    for entry in instance.all_logs(run_id, of_type=_TOLD):
        event = entry.dagster_event
        if event is None or event.step_key is None:
            continue
        change = _change(event)
        handed_out[event.step_key] += change
        if change > 0:
            since[event.step_key] = entry.timestamp
    oldest = time.time() - LONGEST_WAIT_SECONDS
    return any(count > 0 and since[step] > oldest for step, count in handed_out.items())


def _change(event: dg.DagsterEvent) -> int:
    """1 = a step is handed out, -1 = a worker begins it."""
    if event.event_type is dg.DagsterEventType.ENGINE_EVENT:
        data = cast("EngineEventData", event.event_specific_data)
        return (data.marker_start == _QUEUE_WAIT) - (data.marker_end == _QUEUE_WAIT)
    return -1 if event.event_type is dg.DagsterEventType.STEP_WORKER_STARTED else 1
