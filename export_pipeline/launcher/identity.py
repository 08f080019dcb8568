"""Which process a run's worker is, so that nobody mistakes another for it.

A pid alone is reused; the pair of pid and start time (clock ticks since boot, ``proc(5)``, field 22) is not, within
one boot and one pid namespace. The names of those two places are kept as digests: a host's name may be a person's.
"""

from __future__ import annotations

import hashlib
import os
import platform
import signal
from enum import StrEnum
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

WORKER_TAG = ".dagster/warm_worker"
"""On the run; the prefix keeps it out of the UI."""


class Life(StrEnum):
    """What can be said of a process."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """It is, or was, where this process cannot look: another host or container."""


class Worker(BaseModel):
    """One process that executes one run."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    """A re-executed run inherits its parent's tags: a worker of another run says nothing."""
    pid: int
    started: int
    """Clock ticks since boot."""
    host: str
    boot: str
    namespace: str
    server: str
    """The name of the server that forked it."""

    @classmethod
    def this_process(cls, run_id: str, server: str) -> Worker:
        """The calling process, as the worker of a run."""
        pid = os.getpid()
        started = start_ticks(pid)
        if started is None:
            raise OSError(f"/proc has no process {pid}, which is asking.")
        return cls(run_id=run_id, pid=pid, started=started, server=server, **_place())

    @classmethod
    def of_tag(cls, run_id: str, value: str | None) -> Worker | None:
        """What the tag says; None if the run has no such worker."""
        if value is None:
            return None
        try:
            worker = cls.model_validate_json(value)
        except ValidationError:
            return None
        return worker if worker.run_id == run_id else None

    def life(self) -> Life:
        """Whether it lives. A zombie, which nobody waits for, is dead."""
        place = _place()
        if self.boot != place["boot"]:
            return Life.DEAD if self.host == place["host"] else Life.UNKNOWN
        if self.namespace != place["namespace"]:
            return Life.UNKNOWN
        return Life.ALIVE if start_ticks(self.pid) == self.started else Life.DEAD

    def interrupt(self) -> Life:
        """Send SIGTERM if it lives, and say what was found."""
        if self.life() is not Life.ALIVE:
            return self.life()
        try:
            handle = os.pidfd_open(
                self.pid
            )  # pins the process: looked at again below, its pid can no longer change hands
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
    """When a process of this pid namespace started, in clock ticks since boot; None if there is none alive."""
    try:
        content = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = content.rpartition(b")")[2].split()  # the name before it may hold blanks and parentheses
    return None if state in (b"Z", b"X") else int(fields[18])


@cache
def _place() -> dict[str, str]:
    return {
        "host": _digest(platform.node()),
        "boot": _digest(Path("/proc/sys/kernel/random/boot_id").read_text()),
        "namespace": _digest(str(Path("/proc/self/ns/pid").readlink())),
    }


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
