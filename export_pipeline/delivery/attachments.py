"""Files in the message itself, for exports that are small enough.

What belongs here: whether an export is attached, and reading its files for that, once however many
recipients there are. What does not: links (``notify``), the message's form (``mime``).
"""

from __future__ import annotations

import hashlib

from export_pipeline.delivery.mail import Attachment
from export_pipeline.delivery.manifest import Manifest, ManifestFile
from export_pipeline.delivery.store import Store
from export_pipeline.failures import ExportFailure, FailureCode


def attachments_of(store: Store, manifest: Manifest, longest: int) -> tuple[Attachment, ...]:
    """The export's files, read from the store and held against the manifest; none if they are to be linked.

    Args:
        store: where the files are.
        manifest: which files, and what they must be.
        longest: bytes that all files together may have at most; 0 = nothing is ever attached.

    Raises:
        ExportFailure: ``checksum_mismatch`` if a file is not what the manifest says; the store's.
    """
    if not _fits(manifest, longest):
        return ()
    return tuple(Attachment(file.name, file.media_type, _content(store, file)) for file in manifest.files)


def _fits(manifest: Manifest, longest: int) -> bool:
    if not longest or sum(file.bytes for file in manifest.files) > longest:
        return False
    # SendGrid refuses an attachment without content. An encoding is undone by a browser, by no mail client.
    return all(file.bytes and file.content_encoding is None for file in manifest.files)


def _content(store: Store, file: ManifestFile) -> bytes:
    with store.open(file.key) as stream:
        content = stream.read(file.bytes + 1)
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise ExportFailure(
            FailureCode.CHECKSUM_MISMATCH,
            f"{file.name} in the store is not what the manifest says; nobody was mailed. Find out who changed it, "
            "then have the export asked for again.",
        )
    return content
