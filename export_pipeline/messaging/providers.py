"""What a mail provider must do, whichever it is, and the message it is handed.

The three outcomes are kept apart because they decide whether a second try may mail twice:
returned = accepted, ``MailNotAccepted`` = certainly not sent, ``MailOutcomeUnknown`` = perhaps sent.
Who has to act after a refusal is ``Blame``: what is wrong with the installation must not be booked on a recipient.
"""

from __future__ import annotations

from email.headerregistry import Address

from export_pipeline.messaging.message import MailProvider, parse_sender
from export_pipeline.settings import NO_MAIL, Settings, SettingsError, local_path


def open_mail_provider(settings: Settings) -> MailProvider:
    """The provider that ``EXPORT_MAIL_URL`` names.

    Raises:
        SettingsError: the URL cannot be used, or says that no mail is sent (``Settings.sends_mail``: ask that first).
    """
    if not settings.sends_mail:
        raise SettingsError(f"EXPORT_MAIL_URL: is {NO_MAIL}, no mail can be sent; name a provider to send some")
    directory = local_path(settings.mail_url)
    # Imported when chosen: the sendgrid package alone takes a quarter of a second.
    if directory is not None:
        from export_pipeline.messaging.outbox import Outbox

        return Outbox(directory)
    if settings.mail_url == "sendgrid:":
        from export_pipeline.messaging.sendgrid import SendGridMail

        return SendGridMail(settings.sendgrid_api_key.get_secret_value(), settings.sendgrid_host)
    from export_pipeline.messaging.smtp import SmtpMail, SmtpServer

    try:
        return SmtpMail(SmtpServer.from_url(settings.mail_url))
    except ValueError as error:
        problem = str(error)
    raise SettingsError(f"EXPORT_MAIL_URL: {problem}")


def default_sender(settings: Settings) -> Address:
    """The sender of mails for which the request names none.

    Raises:
        SettingsError: ``EXPORT_MAIL_FROM`` is no address.
    """
    try:
        return parse_sender(settings.mail_from)
    except ValueError as error:
        problem = str(error)
    raise SettingsError(f"EXPORT_MAIL_FROM: {problem}")
