"""A run's worker: which process it is, so that no other is mistaken for it, and what the forked process does.

A pid alone is reused; the pair of pid and start time (clock ticks since boot, ``proc(5)``, field 22) is not, within
one boot and one pid namespace. Host, boot and namespace are kept as digests: a host's name may be a person's.
"""

from __future__ import annotations

import os
import platform
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from enum import StrEnum
from functools import cache
from pathlib import Path

from dagster import DagsterInstance, DagsterRunStatus, deserialize_value
from pydantic import BaseModel, ConfigDict, ValidationError

from export_pipeline.launcher.dagster_internals import (
    InstanceRef,
    capture_interrupts,
    execute_run,
    get_run_crash_explanation,
)
from export_pipeline.launcher.protocol import Reply, Request, digest, send

WORKER_TAG = ".dagster/warm_worker"
"""Tag of a run; its prefix hides it in the UI."""


class Life(StrEnum):
    """Whether a process lives."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """It runs, or ran, on another host or in another container, where this process cannot look."""


class Worker(BaseModel):
    """The process that executes one run."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    """A re-executed run inherits its parent's tags: the worker of another run is ignored."""
    pid: int
    started: int
    """Clock ticks since boot."""
    host: str
    boot: str
    namespace: str
    server: str
    """Name of the server that forked it."""

    @classmethod
    def this_process(cls, run_id: str, server: str) -> Worker:
        """The calling process as the worker of a run."""
        pid = os.getpid()
        started = start_ticks(pid)
        if started is None:
            raise OSError(f"/proc does not list this process ({pid}).")
        return cls(run_id=run_id, pid=pid, started=started, server=server, **_place())

    @classmethod
    def of_tag(cls, run_id: str, value: str | None) -> Worker | None:
        """The worker that a run's tag names; None if the tag is missing, malformed or of another run."""
        with suppress(ValidationError):
            worker = cls.model_validate_json(value or "")
            if worker.run_id == run_id:
                return worker
        return None

    def life(self) -> Life:
        """Whether it lives. A zombie counts as dead."""
        place = _place()
        if self.boot != place["boot"]:
            return Life.DEAD if self.host == place["host"] else Life.UNKNOWN
        if self.namespace != place["namespace"]:
            return Life.UNKNOWN
        return Life.ALIVE if start_ticks(self.pid) == self.started else Life.DEAD

    def interrupt(self) -> Life:
        """Send SIGTERM if it lives; returns whether it did."""
        if self.life() is not Life.ALIVE:
            return self.life()
        try:
            handle = os.pidfd_open(self.pid)  # pins the pid: the check below cannot be overtaken by its reuse
        except ProcessLookupError:
            return Life.DEAD
        try:
            if start_ticks(self.pid) != self.started:
                return Life.DEAD
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        except ProcessLookupError:
            return Life.DEAD
        finally:
            os.close(handle)
        return Life.ALIVE


def start_ticks(pid: int) -> int | None:
    """When a process of this pid namespace started, in clock ticks since boot; None if it does not live."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = content.rpartition(b")")[2].split()  # the name before may hold blanks and parentheses
    return None if state in (b"Z", b"X") else int(fields[18])


@cache
def _place() -> dict[str, str]:
    return {
        "host": digest(platform.node()),
        "boot": digest(Path("/proc/sys/kernel/random/boot_id").read_text()),
        "namespace": digest(str(Path("/proc/self/ns/pid").readlink())),
    }


Job = Callable[[], int]
"""What a forked child does; returns its exit code."""
INTERRUPTS = (signal.SIGTERM, signal.SIGINT)


def execute(request: Request, connection: socket.socket, server: str) -> int:
    """Tell the launcher that the run runs, then execute it as ``dagster api execute_run`` does.

    The instance is opened here, after the fork. Returns 0 however the run ends, as long as Dagster knows how.
    """
    with _own_process(), _open_instance(request) as instance:
        with closing(connection):
            reply = _take(instance, request.run_id, server)
            with suppress(OSError):  # the launcher has ended: the run goes on, for no other would launch it
                send(connection, reply)
        if reply.kind != "running":
            return 0
        from export_pipeline.launcher.preload import load_deferred  # not in the daemon: it imports boto3

        load_deferred()
        code = execute_run(request.run_id, instance, lambda _event: None, set_exit_code_on_failure=False)
        run = instance.get_run_by_id(request.run_id)
        if run is not None and run.status is DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run)  # canceled before it began: Dagster would leave it so until a timeout
        return code


def _take(instance: DagsterInstance, run_id: str, server: str) -> Reply:
    if instance.get_run_by_id(run_id) is None:
        return Reply(kind="failed", reason="the run is not in the instance's storage")
    worker = Worker.this_process(run_id, server)
    instance.add_run_tags(run_id, {WORKER_TAG: worker.model_dump_json()})
    return Reply(kind="running")


def report_death(request: Request, exit_code: int) -> int:
    """End a run whose process died without reporting it, as Dagster's code server does for its own."""
    with _own_process(), _open_instance(request) as instance:
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


def _open_instance(request: Request) -> DagsterInstance:
    return DagsterInstance.from_ref(deserialize_value(request.instance_ref, InstanceRef))


@contextmanager
def _own_process() -> Iterator[None]:
    """Give the child signal handlers and random numbers of its own.

    The server blocked the interrupts around the fork; they are unblocked once Dagster's handlers are in place.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    random.seed()  # `secrets` and `uuid` read the kernel's random numbers
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    with capture_interrupts():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPTS)
        yield
