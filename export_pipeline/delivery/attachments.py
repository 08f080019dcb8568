"""What is in the message itself: the files of exports that are small enough, the links of files that are too many."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from export_pipeline.delivery.mail import Attachment
from export_pipeline.delivery.manifest import Manifest, ManifestFile
from export_pipeline.delivery.message import MAX_LISTED, ReadyFile
from export_pipeline.delivery.mime import one_line
from export_pipeline.delivery.store import Store
from export_pipeline.failures import ExportFailure, FailureCode

_LONGEST_LIST = 5_000_000
"""Bytes of a list of links: a third more in the mail, which most servers take (Postfix by default: 10,240,000)."""


def link_list(files: Sequence[ReadyFile]) -> Attachment | None:
    """All links, for a mail that cannot list them; None if it can, or if they are too many to attach.

    A line a file, in the order of the rows: its name, a tab, its link.
    """
    if len(files) <= MAX_LISTED or not all(file.url for file in files):
        return None
    content = "".join(f"{one_line(file.name)}\t{file.url}\r\n" for file in files).encode()
    return Attachment("links.txt", "text/plain; charset=utf-8", content) if len(content) <= _LONGEST_LIST else None


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
