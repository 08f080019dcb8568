"""What every store of delivered files does, and the objects that it takes and returns.

A store raises ``ExportFailure(store_unavailable)`` for what may pass and ``store_refused`` for what will not (no such
bucket, access denied). It raises no other exception of its client.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import quote


@dataclass(frozen=True)
class ObjectDescription:
    """What an object is called and how it is served."""

    key: str
    download_name: str
    """The file name under which a browser saves it."""
    media_type: str
    content_encoding: str | None = None


@dataclass(frozen=True)
class Link:
    """A download URL and the instant (UTC) at which it stops working, None if it never does."""

    url: str
    expires_at: datetime | None


Progress = Callable[[int], None]
"""Called between parts with the bytes done so far; may raise to stop the upload, which is then aborted."""


class Store(Protocol):
    """Objects under one prefix, named by ``/``-separated keys."""

    def put(
        self, source: BinaryIO, description: ObjectDescription, *, size: int, sha256: str, progress: Progress
    ) -> None:
        """Upload ``size`` bytes of this SHA-256 (hex), whole or not at all. ``checksum_mismatch`` if others arrived."""

    def link_file(self, path: Path, description: ObjectDescription, *, size: int) -> bool:
        """Make a finished local file an object without copying it. Returns False, doing nothing, if that is impossible.

        Nobody may change the file afterwards.

        Raises ``ExportFailure``: ``checksum_mismatch`` if it does not have ``size`` bytes.
        """

    def open(self, key: str) -> BinaryIO:
        """Open an object from its beginning; ``store_refused`` without one. A read is never short: it raises."""

    def size(self, key: str) -> int | None:
        """The object's size in bytes, None if there is no such object."""

    def fingerprint(self, key: str) -> str | None:
        """What changes when the object is replaced or altered, None without one. Cheap; not a checksum."""

    def delete(self, key: str) -> None:
        """Delete an object; a missing one is no error."""

    def link(self, description: ObjectDescription, lifetime: timedelta) -> Link:
        """A download URL that needs no credentials, and when it really ends (never later than it says)."""

    def object_url(self, key: str) -> str:
        """Where an operator with credentials finds the object. Carries no signature."""

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys of all objects that begin with ``prefix``, for the janitor."""

    def trees(self) -> Iterator[str]:
        """The first pieces of all keys, each once, for the janitor."""

    def written_at(self, prefix: str) -> datetime | None:
        """When an object whose key begins with ``prefix`` was last written (UTC), None if there is none."""

    def abort_uploads(self, older_than: timedelta) -> int:
        """Remove uploads that began longer ago and never ended. Returns how many."""


UNSAFE_CHARACTERS = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069"
"""Line breaks, control characters, and those that change the direction of the text after them (Unicode TR 36, 2.2: with
these ``gpj.exe`` reads ``exe.jpg``)."""


def content_disposition(name: str) -> str:
    """The Content-Disposition header of a download: ``attachment``, the name in ASCII for old clients and in UTF-8.

    Unsafe characters (line breaks end a header) and path separators become ``_``, so that no name can add a header,
    another parameter or a directory, or look like another name.
    """
    # Slashes and backslashes go too: some clients take what precedes them for a directory.
    clean = re.sub(rf"[{UNSAFE_CHARACTERS}/\\]", "_", name).strip(" .") or "export"
    clean = clean.encode("utf-8", "replace").decode()
    ascii_name = unicodedata.normalize("NFKD", clean).encode("ascii", "ignore").decode()
    ascii_name = re.sub(r"[^A-Za-z0-9 ._()+,=@-]", "_", ascii_name).strip(" .") or "export"
    header = f'attachment; filename="{ascii_name}"'
    return header if ascii_name == clean else f"{header}; filename*=UTF-8''{quote(clean, safe='')}"
