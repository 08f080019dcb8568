"""The launcher's side of the socket: find or start a server, and ask it."""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from export_pipeline.launcher.protocol import (
    ProtocolError,
    Reply,
    Request,
    Specification,
    check_peer,
    digest,
    private_directory,
    receive,
    send,
    socket_of,
)
from export_pipeline.launcher.worker import start_ticks

START_SECONDS = 60.0
ANSWER_SECONDS = 10.0
RUNNING_SECONDS = 60.0
"""From the fork until the child has opened the instance."""


class ServerUnavailable(Exception):
    """No server can serve; nothing was launched."""


class LaunchLost(Exception):
    """A child may have been forked, but did not report that it runs."""


def supported() -> bool:
    """Whether this machine has what the launcher needs: fork, ``/proc``, ``SO_PEERCRED``."""
    return sys.platform == "linux"


def launch(specification: Specification, request: Request, environment: Mapping[str, str]) -> None:
    """Execute a run in a child of the server; start the server if it is not running.

    Raises:
        ServerUnavailable: nothing was launched.
        LaunchLost: the run may have been launched.
        ProtocolError: the directory of the sockets belongs to another user.
    """
    reason = "it ended as often as it was started"
    for _ in range(3):
        with closing(_connect(socket_of(specification.name)) or _start(specification, environment)) as connection:
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
        raise LaunchLost("it did not report that it runs; the warm launcher's log may say why") from None
    if reply.kind == "refused":
        raise ServerUnavailable(reply.reason)
    if reply.kind != "running":
        raise LaunchLost(reply.reason)


def exit_code(server: str, run_id: str) -> int | None:
    """The exit code of a run's process; None if the server does not know it or has ended."""
    try:
        connection = _connect(socket_of(server))
    except ProtocolError:
        return None
    if connection is None:
        return None
    with closing(connection):
        reply = _ask(connection, Request(do="exit_code", run_id=run_id))
    return reply.exit_code if reply is not None else None


def stop_servers(home: Path) -> None:
    """End every server of an instance, and kill the runs that they serve."""
    if not supported():
        return
    for path in private_directory().glob(f"{digest(str(home))}-*.sock"):
        connection = _connect(path)
        if connection is None:
            continue
        with closing(connection):
            server = check_peer(connection)
            _ask(connection, Request(do="stop"))
        began, deadline = start_ticks(server), time.monotonic() + ANSWER_SECONDS
        while began is not None and start_ticks(server) == began and time.monotonic() < deadline:
            time.sleep(0.02)


def _ask(connection: socket.socket, request: Request) -> Reply | None:
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
    """Start the server, unless another process is starting it right now, and connect to it."""
    path = socket_of(specification.name)
    with (path.parent / "start.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # one process and thread at a time; released when its holder dies
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
    """Start a server, wait until it serves, and return why it does not; None if it does."""
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
    reason: str | None = json.loads(report or '"it ended while it was loading"')
    return reason
