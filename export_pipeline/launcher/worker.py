"""What a forked child does: execute one run, or report that another child died.

The instance is opened here, after the fork. A run is executed as ``dagster api execute_run`` does it: the same events,
the same signals (SIGTERM and SIGINT cancel it), the same capture of its output.
"""

from __future__ import annotations

import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

from dagster import DagsterInstance, DagsterRunStatus
from dagster._cli.api import _execute_run_command_body
from dagster._core.instance.ref import InstanceRef
from dagster._serdes import deserialize_value
from dagster._utils import get_run_crash_explanation
from dagster._utils.interrupts import capture_interrupts

from export_pipeline.launcher.identity import WORKER_TAG, Worker
from export_pipeline.launcher.preload import load_deferred
from export_pipeline.launcher.protocol import Reply, Request, send

Job = Callable[[], int]
"""What a child does; returns its exit code."""
INTERRUPTS = (signal.SIGTERM, signal.SIGINT)


def execute(request: Request, connection: socket.socket, server: str) -> int:
    """Execute the run, once the launcher knows that it runs. 0 whatever becomes of the run, if Dagster knows it."""
    with _own_process(), open_instance(request.instance_ref) as instance:
        with closing(connection):
            reply = _take(instance, request.run_id, server)
            with suppress(OSError):  # a launcher that is gone does not stop the run: nobody would launch it again
                send(connection, reply)
        if reply.kind != "running":
            return 0
        load_deferred()
        code = _execute_run_command_body(request.run_id, instance, lambda _event: None, set_exit_code_on_failure=False)
        run = instance.get_run_by_id(request.run_id)
        if run is not None and run.status is DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run)  # canceled before it began, Dagster leaves it there until a timeout
        return code


def _take(instance: DagsterInstance, run_id: str, server: str) -> Reply:
    if instance.get_run_by_id(run_id) is None:
        return Reply(kind="failed", reason="the run is not in the instance's storage")
    worker = Worker.this_process(run_id, server)
    instance.add_run_tags(run_id, {WORKER_TAG: worker.model_dump_json()})
    return Reply(kind="running")


def report_death(request: Request, exit_code: int) -> int:
    """End a run whose process ended without a word, as Dagster's code server does for its own."""
    with _own_process(), open_instance(request.instance_ref) as instance:
        run = instance.get_run_by_id(request.run_id)
        if run is None or run.is_finished:
            return 0
        message = get_run_crash_explanation(f"Run execution process for {run.run_id}", exit_code)
        instance.report_engine_event(message, run)
        if run.status is DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run)
        else:
            instance.report_run_failed(run)
    return 0


@contextmanager
def open_instance(serialized: str) -> Iterator[DagsterInstance]:
    """The instance of a reference that came through the socket."""
    with DagsterInstance.from_ref(deserialize_value(serialized, InstanceRef)) as instance:
        yield instance


@contextmanager
def _own_process() -> Iterator[None]:
    """Nothing of the server's: its signals, its random numbers.

    The server blocked the interrupts around the fork; they are let in when Dagster's handlers are in place.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    reseed()
    with capture_interrupts():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
        yield


def reseed() -> None:
    """Give this process random numbers of its own; ``secrets`` and ``uuid`` ask the kernel and need none of this."""
    random.seed()
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed()
