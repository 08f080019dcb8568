"""The vocabulary of failures: every way a request can end without its files, and whose fault it is.

A message names the field, what is wrong and what to do. It never holds a credential. That of a requester's fault may
repeat what they asked for (an address, a filter) or name one of their rows by its key: it is for the row, and for the
requester's own mail, webhook and HTTP answer, never for the event log or an alert. Every other message holds no address
and no value of a row; it is written for operators, and the row gets ``requester_message`` instead.
"""

from __future__ import annotations

from enum import StrEnum
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError


class Fault(StrEnum):
    """Whose fault a failure is; it alone decides what happens next."""

    REQUESTER = "requester"
    """The request cannot be served as asked. Never retried, at no level."""
    TRANSIENT = "transient"
    """Something outside was not there. Retried with backoff, then failed."""
    OURS = "ours"
    """A promise of ours did not hold. Failed at once; the operator is told."""


class FailureCode(StrEnum):
    """What ``error_code`` may hold. Stable: applications branch on it."""

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

    DATABASE_UNAVAILABLE = "database_unavailable"
    SOURCE_UNAVAILABLE = "source_unavailable"
    STORE_UNAVAILABLE = "store_unavailable"
    STAGING_UNAVAILABLE = "staging_unavailable"
    MAIL_UNAVAILABLE = "mail_unavailable"

    SOURCE_REFUSED = "source_refused"
    STAGING_LOST = "staging_lost"
    STAGING_REFUSED = "staging_refused"
    STORE_REFUSED = "store_refused"
    MAIL_REFUSED = "mail_refused"
    SOURCE_DATA_INVALID = "source_data_invalid"
    COUNT_MISMATCH = "count_mismatch"
    CHECKSUM_MISMATCH = "checksum_mismatch"
    SIZE_LIMIT_EXCEEDED = "size_limit_exceeded"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    INTERNAL_ERROR = "internal_error"

    @property
    def fault(self) -> Fault:
        """Whose fault a failure with this code is."""
        return _FAULTS.get(self, Fault.REQUESTER)


_FAULTS: dict[FailureCode, Fault] = {
    FailureCode.DATABASE_UNAVAILABLE: Fault.TRANSIENT,
    FailureCode.SOURCE_UNAVAILABLE: Fault.TRANSIENT,
    FailureCode.STORE_UNAVAILABLE: Fault.TRANSIENT,
    FailureCode.STAGING_UNAVAILABLE: Fault.TRANSIENT,
    FailureCode.MAIL_UNAVAILABLE: Fault.TRANSIENT,
    FailureCode.SOURCE_REFUSED: Fault.OURS,
    FailureCode.STORE_REFUSED: Fault.OURS,
    FailureCode.MAIL_REFUSED: Fault.OURS,
    FailureCode.STAGING_LOST: Fault.OURS,
    FailureCode.STAGING_REFUSED: Fault.OURS,
    FailureCode.SOURCE_DATA_INVALID: Fault.OURS,
    FailureCode.COUNT_MISMATCH: Fault.OURS,
    FailureCode.CHECKSUM_MISMATCH: Fault.OURS,
    FailureCode.SIZE_LIMIT_EXCEEDED: Fault.OURS,
    FailureCode.ATTEMPTS_EXHAUSTED: Fault.OURS,
    FailureCode.INTERNAL_ERROR: Fault.OURS,
}
_FOR_THE_REQUESTER: dict[Fault, str] = {
    Fault.TRANSIENT: "Something that the export needs could not be reached, although it was tried several times. "
    "Nothing is wrong with the request: ask for the export again later.",
    Fault.OURS: "The export failed on our side. Nothing is wrong with the request. The operators have to look at it; "
    "if you write to them, give them the request's uid.",
}


class ExportFailure(Exception):
    """A request cannot go on: ``code`` for programs, ``message`` for people, ``field`` if one is at fault.

    ``message`` speaks to whoever has to act: the requester if the fault is theirs, else the operators.
    """

    def __init__(
        self, code: FailureCode, message: str, *, field: str | None = None, requester_message: str | None = None
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.field = field
        self.requester_message = requester_message or _FOR_THE_REQUESTER.get(code.fault, message)
        """What the requester reads, on the row and wherever the row is shown."""

    @property
    def fault(self) -> Fault:
        """Whose fault this failure is."""
        return self.code.fault


class ExportCanceled(Exception):
    """The requester asked for the export to stop (``cancel_requested_at`` is set)."""


class OwnershipLost(Exception):
    """Another run owns the row, or the row is no longer running: this run must do nothing more."""


# Words that several rules of a request share: what was typed, shown safely; zones and options that are wrong.


_FILES_ALONE = frozenset({"localtime", "posixrules", "Factory"})
"""Files beside the zones that Python opens: another machine has others, and what writes files knows none of them."""


def invalid_option(message: str, field: str = "options") -> ExportFailure:
    """An option that cannot be used."""
    return ExportFailure(FailureCode.INVALID_OPTION, message, field=field)


def checked_zone(name: str, field: str) -> ZoneInfo:
    """A time zone by its IANA name.

    Raises:
        ExportFailure: ``invalid_option``, naming ``field``.
    """
    try:
        if name not in _FILES_ALONE and not name.startswith(("posix/", "right/")):
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    raise invalid_option(f"{field}: {abbreviate(name)} is not an IANA time zone such as Europe/Madrid.", field)


def abbreviate(text: str, *, quoted: bool = True) -> str:
    """What the requester typed, short and on one line."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return repr(short) if quoted else "".join(c if c.isprintable() else "?" for c in short)
