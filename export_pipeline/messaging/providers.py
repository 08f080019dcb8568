"""The mail provider that the settings name, and the one that is built in: a directory."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from email.headerregistry import Address
from pathlib import Path

from export_pipeline.messaging.message import MailNotAccepted, MailProvider, Message, parse_sender
from export_pipeline.messaging.mime import safe_message_id, to_mime
from export_pipeline.settings import NO_MAIL, Settings, SettingsError, local_path


def open_mail_provider(settings: Settings) -> MailProvider:
    """The provider that ``EXPORT_MAIL_URL`` names.

    ``SettingsError`` if it cannot be used, or says that no mail is sent: check ``Settings.sends_mail`` first.
    """
    if not settings.sends_mail:
        raise SettingsError(f"EXPORT_MAIL_URL: {NO_MAIL} sends no mail; set it to a provider to send mails")
    directory = local_path(settings.mail_url)
    if directory is not None:
        return Outbox(directory)
    # Imported when chosen: the sendgrid package takes a quarter of a second.
    if settings.mail_url == "sendgrid:":
        from export_pipeline.messaging.sendgrid import SendGridMail

        return SendGridMail(settings.sendgrid_api_key.get_secret_value(), settings.sendgrid_host)
    from export_pipeline.messaging.smtp import SmtpMail, SmtpServer

    try:
        return SmtpMail(SmtpServer.from_url(settings.mail_url))
    except ValueError as error:
        raise SettingsError(f"EXPORT_MAIL_URL: {error}") from None


def default_sender(settings: Settings) -> Address:
    """The sender of mails whose request names none; ``SettingsError`` if ``EXPORT_MAIL_FROM`` is not an address."""
    try:
        return parse_sender(settings.mail_from)
    except ValueError as error:
        raise SettingsError(f"EXPORT_MAIL_FROM: {error}") from None


@dataclass(frozen=True)
class Outbox:
    """A directory instead of a mail provider, with one ``.eml`` file per message; implements ``MailProvider``."""

    directory: Path

    def send(self, message: Message) -> None:
        """Write ``{message id}.eml``, whole or not at all; sending a message again overwrites its file."""
        self._write(f"{safe_message_id(message)}.eml", to_mime(message).as_bytes())

    def check(self) -> None:
        """Write a file and delete it."""
        self._write(f".check.{secrets.token_hex(4)}", b"").unlink()

    def _write(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        temporary = path.with_name(f".{name}.{secrets.token_hex(4)}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            return temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise MailNotAccepted(f"outbox {type(error).__name__}", permanent=False) from None
