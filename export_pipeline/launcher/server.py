"""The fork server: a single-threaded loop that forks a child per run, waits for it, and decides when to end.

It is no child of the process that started it: a restart of the daemon must not end runs. It ends once its runs have,
when its code changed on disk, its home or its socket is gone, every process that launched through it has ended, or no
run came for ``idle_seconds``. Its end does not end runs; only the request ``stop`` does.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import cast

from dagster import deserialize_value

from export_pipeline.launcher import worker
from export_pipeline.launcher.dagster_internals import CodePointer
from export_pipeline.launcher.preload import changed, loaded_code, preload, unsafe_to_fork
from export_pipeline.launcher.protocol import (
    Reply,
    Request,
    Specification,
    check_peer,
    private_directory,
    receive,
    send,
    socket_of,
)
from export_pipeline.launcher.worker import start_ticks

LOG_NAME = "warm-launcher.log"
LOG_BYTES = 10_000_000
LOOK_SECONDS = 5.0
LINGER_SECONDS = 30.0
"""How long it waits for a launcher to come back: a restart of the daemon takes less."""
REQUEST_SECONDS = 2.0
REMEMBERED_EXITS = 1000
RUNS_IN_BACKLOG = 128


class Log:
    """The file that takes ``stdout`` and ``stderr`` of this process and its children.

    They are not inherited from the launcher: the server outlives it, and would hold its pipes open.
    """

    def __init__(self, home: Path) -> None:
        directory = home if os.access(home, os.W_OK) else private_directory()  # a container may mount it read-only
        self.path = directory / LOG_NAME
        self._redirect()

    def _redirect(self) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.close(handle)

    def rotate(self) -> None:
        """Keep one full file and one that grows."""
        if os.fstat(2).st_size > LOG_BYTES:
            self.path.replace(self.path.with_suffix(".log.1"))
            self._redirect()

    def write(self, text: str) -> None:
        """Write one line."""
        sys.stderr.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} warm launcher {os.getpid()}: {text}\n")
        sys.stderr.flush()


@dataclass(frozen=True)
class Child:
    """A child that has not been waited for."""

    request: Request
    reports: bool = False
    """It reports the death of another child; its own death is not reported."""


@dataclass
class ForkServer:
    """Serves one socket."""

    specification: Specification
    code: dict[str, tuple[int, int]]
    """Modification time and size of each loaded file."""
    log: Log
    _listener: socket.socket = field(init=False)
    _children: dict[int, Child] = field(default_factory=dict)
    _exit_codes: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _launchers: dict[int, int] = field(default_factory=dict)
    _busy_at: float = field(default_factory=time.monotonic)
    _retired: str | None = None

    def __post_init__(self) -> None:
        self._path = socket_of(self.specification.name)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(RUNS_IN_BACKLOG)
        self._inode = self._path.stat().st_ino
        self._woken, self._waker = socket.socketpair()
        for end in (self._listener, self._woken, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # without a handler nothing wakes the selector
        signal.signal(signal.SIGTERM, lambda _number, _frame: self._retire("it was terminated"))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def serve(self) -> worker.Job | None:
        """Serve until it is time to end. Returns once per process: None in the server, its job in each forked child."""
        looked_at = time.monotonic()
        while self._retired is None or self._children:
            ready = {key.fileobj for key, _ in self._selector.select(LOOK_SECONDS)}
            if self._woken in ready:
                with suppress(BlockingIOError):
                    self._woken.recv(4096)
            job = self._reap()
            if job is None and self._listener in ready and self._retired is None:
                job = self._answer()
            if job is not None:
                return job
            if time.monotonic() - looked_at >= LOOK_SECONDS:
                looked_at = time.monotonic()
                self._look()
        self.log.write(f"ended: {self._retired}")
        return None

    def _answer(self) -> worker.Job | None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return None
        try:
            connection.settimeout(REQUEST_SECONDS)
            peer = check_peer(connection)
            request = receive(connection, Request)
            if request.do == "launch":
                return self._launch(connection, request, peer)
            if request.do == "stop":
                self._stop()
            send(connection, Reply(kind="ended", exit_code=self._exit_codes.get(request.run_id)))
        except OSError as error:
            self.log.write(f"a request was dropped: {error}")
        finally:
            connection.close()
        return None

    def _launch(self, connection: socket.socket, request: Request, peer: int) -> worker.Job | None:
        if (stale := changed(self.code)) is not None:
            self._retire(f"{stale} changed")
            send(connection, Reply(kind="stale", reason="its code changed"))
            return None
        if (unsafe := unsafe_to_fork(own_sockets=4)) is not None:
            self._retire(unsafe)
            send(connection, Reply(kind="refused", reason=unsafe))
            return None
        if (started := start_ticks(peer)) is not None:
            self._launchers[peer] = started
        send(connection, Reply(kind="accepted"))
        if any(child.request.run_id == request.run_id and not child.reports for child in self._children.values()):
            # Two daemons may read the same queue, and Dagster lets both launch a run: one worker is enough.
            self.log.write(f"run {request.run_id} was launched twice; its first worker goes on")
            send(connection, Reply(kind="running"))
            return None
        kept = connection.dup()  # for the child: the caller closes the other one
        kept.settimeout(REQUEST_SECONDS)
        job = None
        try:
            job = self._fork(Child(request), partial(worker.execute, request, kept, self.specification.name))
        except OSError as error:  # no memory, too many processes
            send(connection, Reply(kind="refused", reason=f"it cannot fork ({type(error).__name__})"))
        if job is None:
            kept.close()
        return job

    def _fork(self, child: Child, job: worker.Job) -> worker.Job | None:
        """Fork a child. Returns its job in the child, None in the server."""
        signal.pthread_sigmask(signal.SIG_BLOCK, worker.INTERRUPTS)
        try:
            pid = os.fork()
        except OSError:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, worker.INTERRUPTS)
            raise
        if pid == 0:
            os.setsid()
            signal.set_wakeup_fd(-1)
            self._selector.close()
            for end in (self._listener, self._woken, self._waker):
                end.close()
            return job
        signal.pthread_sigmask(signal.SIG_UNBLOCK, worker.INTERRUPTS)
        self._children[pid] = child
        self._busy_at = time.monotonic()
        return None

    def _reap(self) -> worker.Job | None:
        """Collect ended children. A death is reported by another child: the server must not open the instance."""
        for pid, child in list(self._children.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended == 0:
                continue
            del self._children[pid]
            self._busy_at = time.monotonic()
            exit_code = os.waitstatus_to_exitcode(status)
            self._exit_codes.setdefault(child.request.run_id, exit_code)
            if len(self._exit_codes) > REMEMBERED_EXITS:
                self._exit_codes.popitem(last=False)
            if exit_code == 0:
                continue
            self.log.write(f"child {pid} of run {child.request.run_id} ended with {exit_code}")
            if not child.reports and unsafe_to_fork(own_sockets=3) is None:
                report = partial(worker.report_death, child.request, exit_code)
                with suppress(OSError):  # no memory: run monitoring finds the run
                    if (job := self._fork(Child(child.request, reports=True), report)) is not None:
                        return job
        return None

    def _look(self) -> None:
        """Decide whether to go on."""
        self.log.rotate()
        idle = 0.0 if self._children else time.monotonic() - self._busy_at
        self._launchers = {pid: began for pid, began in self._launchers.items() if start_ticks(pid) == began}
        if not Path(self.specification.home).is_dir():
            self._retire("its home is gone")
        elif not self._has_socket():
            self._retire("its socket is gone")
        elif (stale := changed(self.code)) is not None:
            self._retire(f"{stale} changed")
        elif idle > self.specification.idle_seconds:
            self._retire("nothing was launched for a long time")
        elif idle > LINGER_SECONDS and not self._launchers:
            self._retire("every launcher that used it has ended")

    def _has_socket(self) -> bool:
        try:
            return self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _retire(self, reason: str) -> None:
        """Take no more requests and wait for the runs. The socket goes first: a new server may take its name."""
        if self._retired is None:
            self._retired = reason
            if self._has_socket():
                self._path.unlink()
            with suppress(KeyError, ValueError):
                self._selector.unregister(self._listener)
            self._listener.close()

    def _stop(self) -> None:
        """End now and kill the runs. Not SIGTERM: it would cancel them, and so their exports."""
        self._retire("it was stopped")
        for pid in self._children:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)
        self._children.clear()


def main() -> int:
    """Start a server, serve, and do in each child what the child was forked for."""
    specification = Specification.model_validate_json(sys.argv[1])
    if os.fork() != 0:
        return 0  # the launcher waits for this process, not for the server
    os.setsid()
    with os.fdopen(int(sys.argv[2]), "w") as report:
        server = _start(specification)
        json.dump(server if isinstance(server, str) else None, report)
    if isinstance(server, str):
        return 1
    job = server.serve()
    return 0 if job is None else job()


def _start(specification: Specification) -> ForkServer | str:
    """The server, or why it cannot serve. A reason names the type of an error only: it goes into the event log."""
    began = time.time_ns()
    log = Log(Path(specification.home))
    try:
        if specification.working_directory is not None:
            os.chdir(specification.working_directory)
        preload(cast("CodePointer", deserialize_value(specification.pointer)))
    except Exception as error:  # noqa: BLE001 - a code location may raise anything
        log.write(f"the code location does not load: {type(error).__qualname__}")  # its text may hold a password
        traceback.print_tb(error.__traceback__)
        return f"the code location does not load there ({type(error).__name__}; {log.path} says more)"
    code = loaded_code()
    if any(began <= modified <= time.time_ns() for modified, _ in code.values()):
        return "its code changed while it was loading"
    return unsafe_to_fork(own_sockets=0) or ForkServer(specification, code, log)
