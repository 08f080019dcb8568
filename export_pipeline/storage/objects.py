"""The value objects that every store takes and gives."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import quote


@dataclass(frozen=True)
class ObjectDescription:
    """What an object is to be called and how it is to be served."""

    key: str
    download_name: str
    """The file name a browser saves it under."""
    media_type: str
    content_encoding: str | None = None


@dataclass(frozen=True)
class Link:
    """A download URL and the instant (UTC) at which it stops working, None for one that does not."""

    url: str
    expires_at: datetime | None


Progress = Callable[[int], None]
"""Called with the bytes done so far between parts; may raise to stop the upload, which is then aborted."""
# A message in its Internet form, for providers that take one (SMTP, the outbox).


UNFIT = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""Line breaks, control characters, and what turns the direction of the text behind it (Unicode TR 36, 2.2: with these
``gpj.exe`` reads ``exe.jpg``)."""


# The Content-Disposition header that names a download.


def content_disposition(name: str) -> str:
    """``attachment`` under this name, for old clients in ASCII and for all others in UTF-8.

    Control characters (line breaks end a header), those that turn the direction of text, and path separators become
    ``_``, so that no name can add a header, another parameter or a directory, or look like another.
    """
    # Slashes and backslashes go too: some clients take what precedes them for a directory.
    clean = re.sub(rf"[{UNFIT}/\\]", "_", name).strip(" .") or "export"
    clean = clean.encode("utf-8", "replace").decode()
    ascii_name = unicodedata.normalize("NFKD", clean).encode("ascii", "ignore").decode()
    ascii_name = re.sub(r"[^A-Za-z0-9 ._()+,=@-]", "_", ascii_name).strip(" .") or "export"
    header = f'attachment; filename="{ascii_name}"'
    return header if ascii_name == clean else f"{header}; filename*=UTF-8''{quote(clean, safe='')}"
