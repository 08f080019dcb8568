"""Dagster's processes for the demo: code server, daemon, UI; started together, ended without a trace.

What belongs here: starting, waiting for, and ending them. What does not: what they do.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

_CODE_LOCATION = "export_pipeline.definitions"

_STOP_SECONDS = 20.0
_START_SECONDS = 60.0


class Processes(ExitStack):
    """Child processes that all end when this context does; each has its log file and its own process group."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        super().__init__()
        self._logs = logs
        self._environment = {**os.environ, **environment}
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self.callback(_end_workers, Path(self._environment["DAGSTER_HOME"]))  # last: nobody is left to launch more

    def code_server(self, port: int) -> None:
        """Start the code location's gRPC server."""
        self._start(
            "code-server",
            "dagster",
            "api",
            "grpc",
            "-m",
            _CODE_LOCATION,
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
        )
        self._wait_for(port, "code-server")

    def daemon(self, workspace: Path) -> None:
        """Start the daemon: sensors, queue, monitoring."""
        self._start("daemon", "dagster._daemon", "run", "-w", str(workspace))

    def webserver(self, workspace: Path, port: int) -> None:
        """Start the Dagster UI."""
        self._start("webserver", "dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-w", str(workspace))
        self._wait_for(port, "webserver")

    def _start(self, name: str, module: str, *arguments: str) -> None:
        log = self.enter_context((self._logs / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        self.callback(_end, process)
        self._started[name] = process

    def _wait_for(self, port: int, name: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while self._started[name].poll() is None and time.monotonic() < deadline:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            time.sleep(0.1)
        raise RuntimeError(f"the {name} did not start; see {self._logs / name}.log")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to stop, then end its whole group: a code server's run workers must not outlive it."""
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS / 4)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _end_workers(dagster_home: Path) -> None:
    """End what the daemon's run launcher started; it outlives the daemon, so that a restart ends no run."""
    from export_pipeline.orchestration.launcher.client import stop_servers

    stop_servers(dagster_home)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
