"""What delivered files are called, and under which keys they lie.

What belongs here: names and keys, nothing but string work. What does not: making the secret (whoever
starts an attempt makes one, once) and stores.
"""

from __future__ import annotations

import re
from datetime import date
from uuid import UUID

from export_pipeline.catalog.types import NameStyle

MANIFEST_NAME = "manifest.json"


def file_name(
    dataset: str, day: date, uid: UUID | str, part: str | None, extension: str, *, style: NameStyle = "descriptive"
) -> str:
    """A name for people: ``contacts-2025-11-21-{uid}[-part-00001].csv.gz``, safe on every file system.

    Args:
        dataset: the dataset's name; whatever is not ``A-Z a-z 0-9 _`` becomes ``-``.
        day: the day of the snapshot, in the organization's time zone.
        uid: the request's uid.
        part: what tells this part from the others (``00001``), None for an only file.
        extension: without its leading dot, compression included.
        style: ``uuid`` leaves dataset and day out (Cometly, get contact export: names of UUIDs).
    """
    stem = _safe(str(uid))
    if style == "descriptive":
        stem = f"{_safe(dataset)}-{day.isoformat()}-{stem}"
    if part is not None:
        stem += f"-part-{_safe(part)}"
    return f"{stem}.{'.'.join(_safe(piece) for piece in extension.split('.'))}"


def export_prefix(uid: UUID | str, attempt: int, secret: str) -> str:
    """The prefix of one attempt's objects: ``{uid}/{attempt}/{secret}``.

    Args:
        uid: the request's uid.
        attempt: from 1.
        secret: 32 hex digits of ``secrets.token_hex(16)``, so that no key can be guessed from the uid.

    Raises:
        ValueError: the secret is not 32 hex digits.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", secret):
        raise ValueError("secret must be 32 hex digits, as made by secrets.token_hex(16)")
    return f"{_safe(str(uid))}/{attempt}/{secret}"


def manifest_key(prefix: str) -> str:
    """Where the manifest of an attempt lies."""
    return f"{prefix}/{MANIFEST_NAME}"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:80] or "export"
