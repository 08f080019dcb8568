"""What a store of delivered files must do, whichever it is.

A store raises ``ExportFailure(store_unavailable)`` for what may pass and ``store_refused`` for what
will not (no such bucket, access denied); no other exception of its client leaves it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote, urlsplit

from export_pipeline.settings import Settings, local_path
from export_pipeline.storage.local import LocalStore
from export_pipeline.storage.objects import Link, ObjectDescription, Progress

__all__ = ["Link", "ObjectDescription", "Progress", "Store", "open_store"]


class Store(Protocol):
    """Objects under one prefix, named by ``/``-separated keys."""

    def put(
        self, source: BinaryIO, description: ObjectDescription, *, size: int, sha256: str, progress: Progress
    ) -> None:
        """Upload ``size`` bytes whose SHA-256 (hex) is known; whole or not at all.

        Raises:
            ExportFailure: ``checksum_mismatch`` if what arrived is not what was sent.
        """
        ...

    def link_file(self, path: Path, description: ObjectDescription, *, size: int) -> bool:
        """Make a finished file of this machine an object without copying it, if this store can; else nothing is done.

        Nobody may change the file any more.

        Raises:
            ExportFailure: ``checksum_mismatch`` if it has not ``size`` bytes.
        """
        ...

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading from its beginning. A truncated read raises, it is never short.

        Raises:
            ExportFailure: ``store_refused`` if there is no such object.
        """
        ...

    def size(self, key: str) -> int | None:
        """The object's size in bytes, None if there is none."""
        ...

    def fingerprint(self, key: str) -> str | None:
        """What changes when the object is replaced or altered, None if there is none: not a checksum, and cheap."""
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

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys of all objects that begin with ``prefix``, for a janitor."""
        ...

    def trees(self) -> Iterator[str]:
        """The first pieces of all keys, each once, for a janitor."""
        ...

    def written_at(self, prefix: str) -> datetime | None:
        """When an object whose key begins with ``prefix`` was last written (UTC), None if there is none."""
        ...

    def abort_uploads(self, older_than: timedelta) -> int:
        """Clear away uploads that began longer ago and never ended; how many there were."""
        ...


def open_store(settings: Settings) -> Store:
    """The store that ``EXPORT_STORE_URL`` names.

    Raises:
        ExportFailure: ``store_refused`` if a directory cannot be made or AWS is not configured.
    """
    directory = local_path(settings.store_url)
    if directory is not None:
        return LocalStore(directory)
    from export_pipeline.storage.s3_client import build_client, translated
    from export_pipeline.storage.s3_store import S3Store

    with translated():
        client = build_client(settings.s3_endpoint_url)
        public = settings.s3_public_endpoint_url
        signer = build_client(public) if public else client
    parts = urlsplit(settings.store_url)
    return S3Store(
        client,
        parts.netloc,
        unquote(parts.path).strip("/"),
        signer=signer,
        server_side_encryption=settings.s3_server_side_encryption,
        kms_key_id=settings.s3_kms_key_id,
    )
