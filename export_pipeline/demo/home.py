"""The demo's directory, and the Dagster processes that run in it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from importlib import resources
from pathlib import Path

import click

from export_pipeline.launcher.client import stop_servers

HOST = "127.0.0.1"
BUCKET = "exports"
PREFIX = "demo"
_MARKER = ".export-pipeline-demo"
_START_SECONDS = 60.0
_STOP_SECONDS = 5.0


class Home:
    """The files of one demo, and random keys for its S3 server."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database = directory / "demo.db"
        """SQLite: the host application's tables and the request tables."""
        self.database_url = f"sqlite:///{self.database}"
        self.objects = directory / "s3"
        """The S3 server's files, one directory per bucket."""
        self.outbox = directory / "outbox"
        """One .eml file per mail."""
        self.logs = directory / "logs"
        self.dagster_home = directory / "dagster"
        self.workspace = self.dagster_home / "workspace.yaml"
        """Names the code server for the daemon and the UI."""
        self.access_key_id = f"demo{secrets.token_hex(8)}"
        self.secret_access_key = secrets.token_hex(20)

    def create(self) -> None:
        """Make an empty home; the files of an earlier demo are removed.

        Raises ``click.ClickException``: the directory holds files that are not of a demo.
        """
        if self.directory.exists() and any(self.directory.iterdir()):
            if not (self.directory / _MARKER).exists():
                raise click.ClickException(f"{self.directory} is not empty and holds no demo; choose another --home")
            shutil.rmtree(self.directory)
        for directory in (self.objects / BUCKET, self.outbox, self.logs, self.dagster_home):
            directory.mkdir(parents=True)
        (self.directory / _MARKER).touch()
        configuration = resources.files("export_pipeline.demo") / "dagster.yaml"
        (self.dagster_home / "dagster.yaml").write_text(configuration.read_text())

    def write_workspace(self, port: int) -> None:
        """Point the daemon and the UI at the code server."""
        self.workspace.write_text(
            "load_from:\n  - grpc_server:\n"
            f"      host: 127.0.0.1\n      port: {port}\n      location_name: export_pipeline\n"
        )

    def environment(self, endpoint: str) -> dict[str, str]:
        """The settings of every process of the demo."""
        return {
            "DAGSTER_HOME": str(self.dagster_home),
            "DAGSTER_DISABLE_TELEMETRY": "yes",
            "EXPORT_DATABASE_URL": self.database_url,
            "EXPORT_STORE_URL": f"s3://{BUCKET}/{PREFIX}",
            "EXPORT_STAGING_URL": (self.directory / "staging").as_uri(),
            "EXPORT_S3_ENDPOINT_URL": endpoint,
            "EXPORT_MAIL_URL": self.outbox.as_uri(),
            "EXPORT_MAIL_FROM": "Export demo <exports@example.com>",
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }


class Processes(ExitStack):
    """Dagster's processes, which end with this context; each has its own log file and process group."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        super().__init__()
        self._logs = logs
        self._environment = {**os.environ, **environment}
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        # Last, when no process can launch more: the launcher's servers outlive the daemon, so that its restart does not
        # end runs.
        self.callback(stop_servers, Path(self._environment["DAGSTER_HOME"]))

    def code_server(self, port: int) -> None:
        """Start the code location's gRPC server."""
        address = ("-h", "127.0.0.1", "-p", str(port))
        self._start("code-server", "dagster", "api", "grpc", "-m", "export_pipeline.definitions", *address)
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
        self.callback(end, process)
        self._started[name] = process

    def _wait_for(self, port: int, name: str) -> None:
        if not listens(self._started[name], port, _START_SECONDS):
            raise RuntimeError(f"the {name} did not start; see {self._logs / name}.log")


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop it, then kill its whole group: a code server's run workers must not outlive it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            process.send_signal(number)
            process.wait(_STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def listens(process: subprocess.Popen[bytes], port: int, seconds: float) -> bool:
    """Wait until a process listens on a port of 127.0.0.1; False if it ended, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return True
        time.sleep(0.02)
    return False


def free_port() -> int:
    """A port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
