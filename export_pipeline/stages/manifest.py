"""The manifest of an export, written last: without a manifest there is no export. Also names and keys of its files."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from export_pipeline.catalog.types import NameStyle
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.storage.store import ObjectDescription, Store

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
MANIFEST_NAME = "manifest.json"
_MODEL = ConfigDict(extra="forbid", frozen=True)


class ManifestFile(BaseModel):
    """One delivered file; bytes and SHA-256 (hex) are those of the stored object."""

    model_config = _MODEL

    ordinal: int = Field(ge=1)
    key: str
    name: str
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    sha256: Sha256
    media_type: str
    content_encoding: str | None = None
    fingerprint: str | None = Field(default=None, exclude=True, repr=False)
    """The store's fingerprint after the upload; ``publish`` checks it. Not part of the written manifest."""


class Manifest(BaseModel):
    """What one attempt delivered."""

    model_config = _MODEL

    version: Literal[1] = 1
    uid: UUID
    organization_id: str
    attempt: int = Field(ge=1)
    dataset: str
    catalog_version: Sha256
    """SHA-256 of the dataset's declaration."""
    format: str
    compression: str
    layout: str | None = None
    columns: tuple[str, ...]
    """The headers, in the order of the files."""
    filters_sha256: Sha256 | None = None
    """SHA-256 of filters, lists and segments: shows whether two exports selected the same, not what they selected."""
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    files: tuple[ManifestFile, ...]
    snapshot_at: AwareDatetime
    """The files show the data as of this instant."""
    created_at: AwareDatetime
    time_zone: str
    guard_formulas: bool
    csv_delimiter: str = ","
    counters: Mapping[str, int] = Field(default_factory=dict)
    """What was altered: cells cut, characters replaced and so on."""


def write_manifest(store: Store, key: str, manifest: Manifest) -> None:
    """Write the manifest to the store, as indented JSON; from then on the export exists."""
    content = manifest.model_dump_json(indent=2).encode()
    store.put(
        io.BytesIO(content),
        ObjectDescription(key=key, download_name=MANIFEST_NAME, media_type="application/json"),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        progress=lambda _: None,
    )


def read_manifest(store: Store, key: str) -> Manifest:
    """Read a manifest; ``store_refused`` if it does not exist, ``internal_error`` if it cannot be read."""
    with store.open(key) as stream:
        text = stream.read()
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        fields = sorted({".".join(str(part) for part in detail["loc"]) for detail in error.errors()})
    raise ExportFailure(FailureCode.INTERNAL_ERROR, f"The manifest cannot be read; wrong: {', '.join(fields)}.")


def file_name(
    dataset: str, day: date, uid: UUID | str, part: str | None, extension: str, *, style: NameStyle = "descriptive"
) -> str:
    """A readable file name, safe on every file system: ``contacts-2025-11-21-{uid}[-part-00001].csv.gz``.

    All characters but ``A-Z a-z 0-9 _`` become ``-``. ``day`` is that of the snapshot, in the organization's time zone.
    ``part`` is None for an only file, ``extension`` has no leading dot and ends with the compression's. The style
    ``uuid`` leaves dataset and day out (Cometly, get contact export: names of UUIDs).
    """
    stem = _safe(str(uid))
    if style == "descriptive":
        stem = f"{_safe(dataset)}-{day.isoformat()}-{stem}"
    if part is not None:
        stem += f"-part-{_safe(part)}"
    return f"{stem}.{'.'.join(_safe(piece) for piece in extension.split('.'))}"


def export_prefix(uid: UUID | str, attempt: int, secret: str) -> str:
    """The prefix of an attempt's objects: ``{uid}/{attempt}/{secret}``; attempts count from 1.

    The secret is 32 hex digits of ``secrets.token_hex(16)``, so that nobody can guess a key from the uid.

    Raises ``ValueError``: the secret is not 32 hex digits.
    """
    if not re.fullmatch(r"[0-9a-f]{32}", secret):
        raise ValueError("secret must be 32 hex digits, as made by secrets.token_hex(16)")
    return f"{_safe(str(uid))}/{attempt}/{secret}"


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-")[:80] or "export"
