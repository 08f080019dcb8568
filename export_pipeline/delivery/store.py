"""What a store of delivered files must do, whichever it is.

What belongs here: the protocol and its value objects, and the choice of a store by its URL.
What does not: S3 (``s3``), directories (``local``), the manifest's content (``manifest``).

A store raises ``ExportFailure(store_unavailable)`` for what may pass and ``store_refused`` for what
will not (no such bucket, access denied); no other exception of its client leaves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import BinaryIO, Protocol


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


class Store(Protocol):
    """Objects under one prefix, named by ``/``-separated keys."""

    def put(self, source: BinaryIO, description: ObjectDescription, *, size: int, sha256: str, progress: Progress) -> None:
        """Upload ``size`` bytes whose SHA-256 (hex) is known; whole or not at all.

        Raises:
            ExportFailure: ``checksum_mismatch`` if what arrived is not what was sent.
        """
        ...

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading from its beginning. A truncated read raises, it is never short."""
        ...

    def size(self, key: str) -> int | None:
        """The object's size in bytes, None if there is none."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        ...

    def link(self, description: ObjectDescription, lifetime: timedelta) -> Link:
        """A download URL that needs no credentials, and when it really ends (never promised longer)."""
        ...

    def object_url(self, key: str) -> str:
        """Where an operator with credentials finds the object. Carries no signature."""
        ...
