"""Words that several rules of a request share: what was typed, shown safely; zones and options that are wrong.

What belongs here: phrasing. What does not: any rule of its own.
"""

from __future__ import annotations

from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from export_pipeline.failures import ExportFailure, FailureCode

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
    raise invalid_option(f"{field}: {shown(name)} is not an IANA time zone such as Europe/Madrid.", field)


def shown(text: str, *, quoted: bool = True) -> str:
    """What the requester typed, short and on one line."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return repr(short) if quoted else "".join(c if c.isprintable() else "?" for c in short)
