"""The value objects that every store takes and gives.

What belongs here: how an object is described, and what a link to it is.
What does not: the protocol that uses them (``store``, which hands these names on).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime


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
