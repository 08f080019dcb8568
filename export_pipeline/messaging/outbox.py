"""A directory instead of a mail provider: the embedded default, one ``.eml`` file a message."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from export_pipeline.messaging.message import MailNotAccepted, Message
from export_pipeline.messaging.mime import safe_message_id, to_mime


class Outbox:
    """Implements ``delivery.mail.MailProvider``; sending a message again overwrites its file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def send(self, message: Message) -> None:
        """Write ``{message id}.eml``, whole or not at all.

        Raises:
            MailNotAccepted: the directory cannot be written (not permanent), or the address is none.
        """
        content = to_mime(message).as_bytes()
        path = self._directory / f"{safe_message_id(message)}.eml"
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise MailNotAccepted(f"outbox {type(error).__name__}", permanent=False) from None

    def check(self) -> None:
        """Write a file and delete it.

        Raises:
            MailNotAccepted: the directory cannot be written.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            probe = self._directory / f".check.{secrets.token_hex(4)}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise MailNotAccepted(f"outbox {type(error).__name__}", permanent=False) from None
