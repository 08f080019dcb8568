"""What launcher and server say to each other: one JSON object per line, over a Unix socket of the same user.

A request carries a run's id and the instance's reference, never what the run is about.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import struct
import tempfile
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict

MAX_MESSAGE_BYTES = 1_000_000
_MessageT = TypeVar("_MessageT", bound=BaseModel)


class ProtocolError(OSError):
    """The other side is another user's process, broke the protocol or hung up."""


class Specification(BaseModel):
    """What a server is started with."""

    model_config = ConfigDict(frozen=True)

    home: str
    executable: str
    pointer: str
    """Where the code is; serialized by Dagster."""
    working_directory: str | None
    idle_seconds: float
    environment: str
    """Digest of the environment variables: a server keeps the settings that it was started with."""

    @property
    def name(self) -> str:
        """Names the server: runs with another code or environment need another server."""
        return f"{digest(self.home)}-{digest(self.executable, self.pointer, self.environment)}"


class Request(BaseModel):
    """A launcher's request."""

    model_config = ConfigDict(frozen=True)

    do: Literal["launch", "exit_code", "stop"]
    run_id: str = ""
    instance_ref: str = ""
    """Serialized by Dagster; for ``launch``."""


class Reply(BaseModel):
    """The server's answer. After ``accepted`` the forked child answers."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["accepted", "running", "stale", "refused", "failed", "ended"]
    """``accepted``: from here on a child may exist. ``running``: the child has the run. ``failed``: it could not take
    the run. ``stale``: the code changed; ask a new server. ``refused``: no child was forked, and none will be."""
    reason: str = ""
    exit_code: int | None = None


def digest(*texts: str) -> str:
    """A short digest of some texts."""
    return hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()[:16]


def socket_of(name: str) -> Path:
    """Where the server of that name listens."""
    return private_directory() / f"{name}.sock"


def private_directory() -> Path:
    """The directory of the sockets, which only this user may enter. Its path is short: a socket's may have 107 bytes.

    Raises ``ProtocolError``: another user owns a directory of that name, or others may enter it.
    """
    directory = Path(tempfile.gettempdir()) / f"export-pipeline-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ProtocolError(f"{directory} is not a directory that only this user may enter; remove it.")
    return directory


def check_peer(connection: socket.socket) -> int:
    """The pid of the process at the other end. Raises ``ProtocolError``: it is another user's process."""
    size = struct.calcsize("3i")
    pid, uid, _group = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid != os.getuid():
        raise ProtocolError("the process at the other end of the socket is another user's.")
    return int(pid)


def send(connection: socket.socket, message: BaseModel) -> None:
    """Send one message."""
    connection.sendall(message.model_dump_json().encode() + b"\n")


def receive(connection: socket.socket, model: type[_MessageT]) -> _MessageT:
    """The next message. Reads no byte past it: a child that inherits the connection reads on from there.

    Raises:
        ProtocolError: the other side hung up, or sent something else.
        TimeoutError: it sent nothing within the connection's timeout.
    """
    line = bytearray()
    while True:
        seen = connection.recv(65536, socket.MSG_PEEK)
        if not seen:
            raise ProtocolError("the other side hung up.")
        end = seen.find(b"\n") + 1
        line += connection.recv(end or len(seen))
        if end:
            break
        if len(line) > MAX_MESSAGE_BYTES:
            raise ProtocolError("the other side's message does not end.")
    try:
        return model.model_validate_json(bytes(line))
    except ValueError:
        raise ProtocolError("the other side sent another message than expected.") from None
