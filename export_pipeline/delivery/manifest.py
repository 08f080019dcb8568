"""The manifest of an export: written last, it is the commit point. No manifest, no export.

What belongs here: its model, and writing and reading it. What does not: holding it against the
files (``verify``). It holds no value of a row and no value of a filter.
"""

from __future__ import annotations

import builtins
import hashlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from export_pipeline.delivery.objects import ObjectDescription
from export_pipeline.failures import ExportFailure, FailureCode

if TYPE_CHECKING:
    from export_pipeline.delivery.store import Store

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_MODEL = ConfigDict(extra="forbid", frozen=True)


class ManifestFile(BaseModel):
    """One delivered file: bytes and SHA-256 (hex) are those of the object as stored."""

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
    """The store's, when the file had arrived: what is published is held to it. Not written."""


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
    """The headers, in the files' order."""
    filters_sha256: Sha256 | None = None
    """SHA-256 of filters, lists and segments: tells whether two exports asked the same, not what they asked."""
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    files: tuple[ManifestFile, ...]
    snapshot_at: AwareDatetime
    """The instant whose state of the data the files show."""
    created_at: AwareDatetime
    time_zone: str
    guard_formulas: bool
    csv_delimiter: str = ","
    counters: Mapping[str, int] = Field(default_factory=dict)
    """What had to be altered: cells cut, characters replaced and so on."""

    def to_json(self) -> builtins.bytes:
        """The manifest as JSON, indented for people."""
        return self.model_dump_json(indent=2).encode()

    @classmethod
    def from_json(cls, text: builtins.bytes) -> Manifest:
        """Read a manifest.

        Raises:
            ExportFailure: ``internal_error`` if it is none, or of a version that is not known.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            fields = sorted({".".join(str(part) for part in detail["loc"]) for detail in error.errors()})
        raise ExportFailure(FailureCode.INTERNAL_ERROR, f"The manifest cannot be read; wrong: {', '.join(fields)}.")


def write_manifest(store: Store, key: str, manifest: Manifest) -> None:
    """Put the manifest into the store; from then on the export exists.

    Raises:
        ExportFailure: the store's.
    """
    content = manifest.to_json()
    store.put(
        io.BytesIO(content),
        ObjectDescription(key=key, download_name="manifest.json", media_type="application/json"),
        size=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        progress=lambda _: None,
    )


def read_manifest(store: Store, key: str) -> Manifest:
    """Read a manifest from the store.

    Raises:
        ExportFailure: ``store_refused`` if there is none, ``internal_error`` if it cannot be read.
    """
    with store.open(key) as stream:
        return Manifest.from_json(stream.read())
