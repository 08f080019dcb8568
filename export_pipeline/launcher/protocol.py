"""How launcher and server talk: where the sockets are, who may use them, what is said.

A request carries a run's id and the instance's reference, never what the run is about.
"""

from __future__ import annotations

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
    """The other side is not who or what it should be, or hung up in the middle."""


class Request(BaseModel):
    """What a launcher asks."""

    model_config = ConfigDict(frozen=True)

    do: Literal["launch", "exit_code", "stop"]
    run_id: str = ""
    instance_ref: str = ""
    """Serialized by Dagster; for ``launch``."""


class Reply(BaseModel):
    """What the server answers; after ``accepted`` its child goes on speaking."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["accepted", "running", "stale", "refused", "failed", "ended"]
    """``accepted``: from here on a child may exist. ``running``: it has the run. ``failed``: it could not take it.
    ``stale``: the code changed; ask a new server. ``refused``: no child was made, for a reason that will stay."""
    reason: str = ""
    exit_code: int | None = None


def private_directory() -> Path:
    """Where the sockets are: short, because a socket's path may have 107 bytes, and ours alone.

    Raises:
        ProtocolError: somebody else made a directory of that name.
    """
    directory = Path(tempfile.gettempdir()) / f"export-pipeline-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ProtocolError(f"{directory} is not a directory of this user alone; remove it.")
    return directory


def check_peer(connection: socket.socket) -> int:
    """The pid of who is at the other end, which must be the same user's.

    Raises:
        ProtocolError: it is another user's process.
    """
    size = struct.calcsize("3i")
    pid, uid, _group = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid != os.getuid():
        raise ProtocolError("the process at the other end of the socket is another user's.")
    return int(pid)


def send(connection: socket.socket, message: BaseModel) -> None:
    """One message, one line."""
    connection.sendall(message.model_dump_json().encode() + b"\n")


def receive(connection: socket.socket, model: type[_MessageT]) -> _MessageT:
    """The next message, read byte-exact: whoever inherits the connection reads on from there.

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
            raise ProtocolError("the other side's message has no end.")
    try:
        return model.model_validate_json(bytes(line))
    except ValueError:
        raise ProtocolError("the other side's message is not of this protocol.") from None
