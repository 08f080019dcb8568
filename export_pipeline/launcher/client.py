"""The launcher's side of the socket: finding a server, starting one, asking it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from export_pipeline.launcher.identity import start_ticks
from export_pipeline.launcher.protocol import (
    ProtocolError,
    Reply,
    Request,
    check_peer,
    private_directory,
    receive,
    send,
)

START_SECONDS = 60.0
ANSWER_SECONDS = 10.0
RUNNING_SECONDS = 60.0
"""From the fork until the child has opened the instance."""


class ServerUnavailable(Exception):
    """No server can serve; nothing was launched."""


class LaunchLost(Exception):
    """A child may have been forked and has not said that it runs."""


class Specification(BaseModel):
    """Everything that makes one server another: where it serves, what it loads, with which environment."""

    model_config = ConfigDict(frozen=True)

    home: str
    executable: str
    pointer: str
    """Serialized by Dagster."""
    working_directory: str | None
    idle_seconds: float
    name: str
    socket: str

    @classmethod
    def of(
        cls,
        *,
        home: str,
        executable: str,
        pointer: str,
        working_directory: str | None,
        idle_seconds: float,
        environment: Mapping[str, str],
    ) -> Specification:
        """The environment is part of the name: a server keeps the one that it was started with, settings and all.

        Raises:
            ProtocolError: the directory of the sockets is somebody else's.
        """
        rest = "\0".join([executable, pointer, *(f"{name}={value}" for name, value in sorted(environment.items()))])
        name = f"{_digest(home)}-{_digest(rest)}"
        return cls(
            home=home,
            executable=executable,
            pointer=pointer,
            working_directory=working_directory,
            idle_seconds=idle_seconds,
            name=name,
            socket=str(socket_of(name)),
        )


class StartReport(BaseModel):
    """What a starting server tells who started it."""

    reason: str | None = None
    """Why it does not serve."""


def socket_of(name: str) -> Path:
    """Where the server of that name listens."""
    return private_directory() / f"{name}.sock"


def launch(specification: Specification, request: Request, environment: Mapping[str, str]) -> None:
    """Have the run executed by a child of the server, which is started if it is not there.

    Raises:
        ServerUnavailable: nothing was launched.
        LaunchLost: perhaps something was.
    """
    reason = "it ended as often as it was started"
    for _ in range(3):
        with closing(_connect(Path(specification.socket)) or _start(specification, environment)) as connection:
            try:
                send(connection, request)
                reply = receive(connection, Reply)
            except OSError:
                continue  # it ended before it forked: `accepted` comes first
            if reply.kind == "accepted":
                _wait_until_running(connection)
                return
            reason = reply.reason
            if reply.kind == "refused":
                break
    raise ServerUnavailable(reason)


def _wait_until_running(connection: socket.socket) -> None:
    connection.settimeout(RUNNING_SECONDS)
    try:
        reply = receive(connection, Reply)
    except OSError:
        raise LaunchLost("the worker did not say that it runs; the log of the warm launcher may say why") from None
    if reply.kind == "refused":
        raise ServerUnavailable(reply.reason)
    if reply.kind != "running":
        raise LaunchLost(reply.reason)


def exit_code(server: str, run_id: str) -> int | None:
    """How a run's process ended; None if the server does not know or is no more."""
    try:
        connection = _connect(socket_of(server))
    except ProtocolError:
        return None
    if connection is None:
        return None
    with closing(connection):
        reply = _talk(connection, Request(do="exit_code", run_id=run_id))
    return reply.exit_code if reply is not None else None


def stop_servers(home: Path) -> None:
    """End every server of an instance, and kill the runs that they serve."""
    if not supported():
        return
    for path in private_directory().glob(f"{_digest(str(home))}-*.sock"):
        connection = _connect(path)
        if connection is None:
            continue
        with closing(connection):
            server = check_peer(connection)
            _talk(connection, Request(do="stop"))
        began, deadline = start_ticks(server), time.monotonic() + ANSWER_SECONDS
        while began is not None and start_ticks(server) == began and time.monotonic() < deadline:
            time.sleep(0.02)


def _talk(connection: socket.socket, request: Request) -> Reply | None:
    try:
        send(connection, request)
        return receive(connection, Reply)
    except OSError:
        return None


def _connect(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(ANSWER_SECONDS)
    try:
        connection.connect(str(path))
        check_peer(connection)
    except OSError:
        connection.close()
        return None
    return connection


def _start(specification: Specification, environment: Mapping[str, str]) -> socket.socket:
    """Start the server, unless another process does so right now, and connect to it."""
    path = Path(specification.socket)
    with _locked(path.parent / "start.lock"):
        connection = _connect(path)
        if connection is not None:
            return connection
        path.unlink(missing_ok=True)
        reason = _spawn(specification, environment)
        connection = _connect(path)
    if connection is None:
        raise ServerUnavailable(reason or "it started and ended")
    return connection


def _spawn(specification: Specification, environment: Mapping[str, str]) -> str | None:
    """Start a server and wait until it serves or says why it does not."""
    reading, writing = os.pipe()
    with open(reading, "rb") as reports:  # noqa: PTH123 - a descriptor
        try:
            process = subprocess.Popen(  # noqa: S603 - the code location's own Python
                [
                    specification.executable,
                    "-m",
                    "export_pipeline.launcher",
                    specification.model_dump_json(),
                    str(writing),
                ],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[writing],
                start_new_session=True,
            )
        except OSError as error:
            return f"it could not be started ({type(error).__name__})"
        finally:
            os.close(writing)
        process.wait()
        if not select.select([reports], [], [], START_SECONDS)[0]:
            return f"it did not start within {START_SECONDS:.0f} s"
        report = reports.read()
    return StartReport.model_validate_json(report).reason if report else "it ended while it was loading"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Held by one process and thread at a time; the kernel releases it when its holder dies."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def supported() -> bool:
    """Whether this machine has what the launcher needs: fork, ``/proc``, ``SO_PEERCRED``."""
    return sys.platform == "linux"
