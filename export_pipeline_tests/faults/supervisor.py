"""Killing the processes of an installation, and starting them anew as a supervisor would."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import dagster as dg
import psutil

from export_pipeline.demo.home import Processes
from export_pipeline.launcher import client
from export_pipeline.launcher.protocol import check_peer, socket_of
from export_pipeline.launcher.worker import WORKER_TAG, Life, Worker
from export_pipeline.orchestration.jobs import JOB_NAME
from export_pipeline_tests.stack import Stack

CODE_SERVER, DAEMON = "code-server", "daemon"


@dataclass
class Supervisor:
    """The processes of a stack."""

    stack: Stack
    instance: dg.DagsterInstance
    _restarts: dict[str, int] = field(default_factory=dict)

    @property
    def processes(self) -> Processes:
        assert self.stack.processes is not None
        return self.stack.processes

    def kill(self, name: str) -> Callable[[], None]:
        """SIGKILL the code server or the daemon, and nothing else of its group; what is returned starts it again."""
        process = self.processes._started[name]
        assert process.poll() is None, f"{name} had ended by itself; {self.stack.logs()}"
        process.kill()
        process.wait()
        number = self._restarts[name] = self._restarts.get(name, 0) + 1
        log = self.stack.home.logs / f"{name}.log"
        log.rename(log.with_suffix(f".{number}.log"))
        _, _, module, *arguments = process.args  # type: ignore[misc]
        return partial(self.processes._start, name, module, *arguments)

    def second_daemon(self) -> str:
        """Start another daemon over the same instance; returns its name."""
        self.processes._start("daemon-2", "dagster._daemon", "run", "-w", str(self.stack.home.workspace))
        return "daemon-2"

    def worker(self, run_id: str | None) -> psutil.Process | None:
        """The process that executes a run, if it lives: as the warm run launcher noted it, or as Dagster's own did."""
        run = self.instance.get_run_by_id(run_id) if run_id else None
        if run is None or run.job_name != JOB_NAME:
            return None
        worker = Worker.of_tag(run.run_id, run.tags.get(WORKER_TAG))
        if worker is not None:
            return psutil.Process(worker.pid) if worker.life() is Life.ALIVE else None
        return self._worker_of_dagster(run.run_id)

    def _worker_of_dagster(self, run_id: str) -> psutil.Process | None:
        for record in self.instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT).records:
            event = record.event_log_entry.dagster_event
            pid = re.search(r"Started process for run \(pid: (\d+)\)", (event and event.message) or "")
            if pid is not None and psutil.pid_exists(int(pid[1])):
                return psutil.Process(int(pid[1]))
        return None

    def fork_server(self, run_id: str | None) -> psutil.Process | None:
        """The warm run launcher's server for runs like this one, whoever forked its worker; None if there is none."""
        run = self.instance.get_run_by_id(run_id) if run_id else None
        worker = Worker.of_tag(run.run_id, run.tags.get(WORKER_TAG)) if run is not None else None
        connection = client._connect(socket_of(worker.server)) if worker is not None else None
        if connection is None:
            return None
        with closing(connection):
            return psutil.Process(check_peer(connection))

    def status(self, run_id: str) -> str:
        run = self.instance.get_run_by_id(run_id)
        assert run is not None
        return run.status.value


@contextmanager
def supervise(stack: Stack) -> Iterator[Supervisor]:
    with dg.DagsterInstance.from_config(str(stack.home.dagster_home)) as instance:
        yield Supervisor(stack, instance)


def kill(process: psutil.Process) -> bool:
    """SIGKILL a process; False if it had ended."""
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    wait_until(lambda: not lives(process), 10)
    return True


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(check: Callable[[], object], seconds: float, *, why: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


def staged_files(stack: Stack) -> list[str]:
    root = Path(stack.home.directory / "staging")
    return sorted(os.path.relpath(path, root) for path in root.rglob("*") if path.is_file())
