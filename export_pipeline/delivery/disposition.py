"""The Content-Disposition header that names a download.

What belongs here: RFC 6266 and its encoding of names (RFC 8187). What does not: choosing names (``keys``).
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import quote

from export_pipeline.delivery.mime import UNFIT


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
