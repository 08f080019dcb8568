"""All ways in which a request can fail, and whose fault each is.

A message names the field, what is wrong and what to do. It never holds a credential. The message of a requester's fault
may repeat the request (an address, a filter) or name a row by its key: it is for the row, and for the requester's own
mail, webhook and HTTP answer, never for the event log or an alert. All other messages hold no address and no value of a
row; they are for operators, and the row gets ``requester_message`` instead.
"""

from __future__ import annotations

from contextlib import suppress
from enum import StrEnum
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError


class Fault(StrEnum):
    """Whose fault a failure is; only this decides what happens next."""

    REQUESTER = "requester"
    """The request is wrong. Never retried, at no level."""
    TRANSIENT = "transient"
    """Something outside was unavailable. Retried with backoff, then failed."""
    OURS = "ours"
    """The export broke one of its guarantees. Fails at once, and operators are alerted."""


class FailureCode(StrEnum):
    """The values of ``error_code``. Stable: applications branch on them."""

    fault: Fault
    """Whose fault a failure with this code is."""

    def __new__(cls, value: str, fault: Fault = Fault.REQUESTER) -> FailureCode:
        """A code of the requester's fault, unless another one is given."""
        code = str.__new__(cls, value)
        code._value_ = value
        code.fault = fault
        return code

    INVALID_REQUEST = "invalid_request"
    UNKNOWN_DATASET = "unknown_dataset"
    UNKNOWN_FORMAT = "unknown_format"
    UNKNOWN_COMPRESSION = "unknown_compression"
    UNKNOWN_LAYOUT = "unknown_layout"
    UNKNOWN_COLUMN = "unknown_column"
    INVALID_FILTER = "invalid_filter"
    INVALID_DATE_RANGE = "invalid_date_range"
    INVALID_RECIPIENT = "invalid_recipient"
    TOO_MANY_RECIPIENTS = "too_many_recipients"
    INVALID_MAX_FILE_SIZE = "invalid_max_file_size"
    INVALID_OPTION = "invalid_option"
    UNKNOWN_LIST = "unknown_list"
    UNKNOWN_SEGMENT = "unknown_segment"
    INVALID_SEGMENT = "invalid_segment"
    UNKNOWN_INCLUDE = "unknown_include"
    PERMISSION_DENIED = "permission_denied"
    EMAIL_INTEGRATION_OFF = "email_integration_off"
    EMAIL_PROVIDER_NOT_CONFIGURED = "email_provider_not_configured"
    INSUFFICIENT_BALANCE = "insufficient_balance"
    SENDER_CONFLICT = "sender_conflict"
    INVALID_SENDER = "invalid_sender"
    SENDER_DOMAIN_UNKNOWN = "sender_domain_unknown"
    SENDER_DOMAIN_UNVERIFIED = "sender_domain_unverified"
    SENDER_UNKNOWN = "sender_unknown"
    INVALID_SCHEDULE = "invalid_schedule"
    RECIPIENT_OUTSIDE = "recipient_outside"
    NO_RECIPIENT_LEFT = "no_recipient_left"
    INVALID_WEBHOOK = "invalid_webhook"
    NOT_SUPPORTED = "not_supported"
    ROW_TOO_LARGE = "row_too_large"
    FILE_SIZE_TOO_SMALL = "file_size_too_small"

    DATABASE_UNAVAILABLE = "database_unavailable", Fault.TRANSIENT
    SOURCE_UNAVAILABLE = "source_unavailable", Fault.TRANSIENT
    STORE_UNAVAILABLE = "store_unavailable", Fault.TRANSIENT
    STAGING_UNAVAILABLE = "staging_unavailable", Fault.TRANSIENT
    MAIL_UNAVAILABLE = "mail_unavailable", Fault.TRANSIENT

    SOURCE_REFUSED = "source_refused", Fault.OURS
    STAGING_LOST = "staging_lost", Fault.OURS
    STAGING_REFUSED = "staging_refused", Fault.OURS
    STORE_REFUSED = "store_refused", Fault.OURS
    MAIL_REFUSED = "mail_refused", Fault.OURS
    SOURCE_DATA_INVALID = "source_data_invalid", Fault.OURS
    COUNT_MISMATCH = "count_mismatch", Fault.OURS
    CHECKSUM_MISMATCH = "checksum_mismatch", Fault.OURS
    SIZE_LIMIT_EXCEEDED = "size_limit_exceeded", Fault.OURS
    ATTEMPTS_EXHAUSTED = "attempts_exhausted", Fault.OURS
    INTERNAL_ERROR = "internal_error", Fault.OURS


_REQUESTER_MESSAGES: dict[Fault, str] = {
    Fault.TRANSIENT: "Something that the export needs could not be reached, although it was tried several times. "
    "Nothing is wrong with the request: ask for the export again later.",
    Fault.OURS: "The export failed on our side. Nothing is wrong with the request. The operators have to look at it; "
    "if you write to them, give them the request's uid.",
}


class ExportFailure(Exception):
    """A request cannot go on: ``code`` for programs, ``message`` for people, ``field`` if one is at fault.

    ``message`` is for the person who has to act: the requester for a requester's fault, else the operators.
    """

    def __init__(
        self, code: FailureCode, message: str, *, field: str | None = None, requester_message: str | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.field = field
        self.requester_message = requester_message or _REQUESTER_MESSAGES.get(code.fault, message)
        """The message for the requester, on the row and wherever the row is shown."""

    @property
    def fault(self) -> Fault:
        """Whose fault this failure is."""
        return self.code.fault


class ExportCanceled(Exception):
    """The requester canceled the export (``cancel_requested_at`` is set)."""


class OwnershipLost(Exception):
    """Another run owns the row, or the row is no longer running: this run must do nothing more."""


def invalid_option(message: str, field: str = "options") -> ExportFailure:
    """The failure for an option with a wrong value."""
    return ExportFailure(FailureCode.INVALID_OPTION, message, field=field)


def checked_zone(name: str, field: str) -> ZoneInfo:
    """A time zone by its IANA name (``invalid_option``, naming ``field``)."""
    # Python also opens these files beside the zones. They differ between machines, or file writers do not know them.
    if name not in ("localtime", "posixrules", "Factory") and not name.startswith(("posix/", "right/")):
        with suppress(ZoneInfoNotFoundError, ValueError, OSError):
            return ZoneInfo(name)
    raise invalid_option(f"{field}: {abbreviate(name)} is not an IANA time zone such as Europe/Madrid.", field)


def abbreviate(text: str, *, quoted: bool = True, length: int = 60) -> str:
    """User input for a message: at most ``length`` characters, on one line."""
    short = text if len(text) <= length else text[: length - 3] + "..."
    return repr(short) if quoted else "".join(c if c.isprintable() else "?" for c in short)
