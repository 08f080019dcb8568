"""One object's way into S3: in one piece or in parts, whole or not at all.

What belongs here: what is sent, its checksums, and taking back what did not end. What does not: where objects are
(``s3``), what S3's errors mean (``s3_errors``).

One upload reads its source once and sends two parts at a time while it reads the next: 24 MiB in memory for files up
to 80 GB. Parts of more than 32 MiB go one by one, each read while the one before is sent; they are 525 MB in the
largest file that S3 takes (5 TB).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from typing import Any, BinaryIO, cast

import botocore.exceptions as boto

from export_pipeline.delivery.objects import Progress
from export_pipeline.engine.ahead import ahead
from export_pipeline.engine.s3_errors import is_missing, translated
from export_pipeline.failures import ExportFailure, FailureCode

MINIMUM_PART = 8 * 2**20
"""Bytes; S3's own floor is 5 MiB."""
MAXIMUM_PARTS = 10_000
PARTS_AT_ONCE = 2
LARGEST_TOGETHER = 32 * 2**20
"""Bytes of a part up to which several are in memory at once."""


def part_size(size: int) -> int:
    """Bytes of each part (the last may be shorter) of an object of ``size`` bytes: whole MiB, 10,000 parts at most."""
    smallest = -(-size // MAXIMUM_PARTS)
    return max(MINIMUM_PART, -(-smallest // 2**20) * 2**20)


class Upload:
    """An object of ``size`` bytes whose SHA-256 (hex) is known; ``headers`` say where and how it is kept."""

    def __init__(self, client: Any, headers: Mapping[str, Any], size: int, sha256: str) -> None:
        self._client = client
        self._headers = headers
        self._at = {"Bucket": headers["Bucket"], "Key": headers["Key"]}
        self._size = size
        self._sha256 = sha256

    def send(self, source: BinaryIO, progress: Progress) -> None:
        """Send everything.

        Raises:
            ExportFailure: ``checksum_mismatch`` if the source holds something else; what S3 answers.
        """
        if self._size <= MINIMUM_PART:
            self._in_one_piece(source, progress)
        else:
            self._in_parts(source, progress)

    def _in_one_piece(self, source: BinaryIO, progress: Progress) -> None:
        body = _read_exactly(source, self._size + 1)
        if len(body) != self._size or hashlib.sha256(body).hexdigest() != self._sha256:
            raise mismatch("A staged file is not what was written")
        with translated():
            self._client.put_object(**self._headers, Body=body, ChecksumSHA256=_checksum(body))
        progress(self._size)

    def _in_parts(self, source: BinaryIO, progress: Progress) -> None:
        with translated():
            upload = self._client.create_multipart_upload(**self._headers, ChecksumAlgorithm="SHA256")["UploadId"]
        try:
            self._complete(upload, self._send_parts(source, upload, progress))
        except BaseException:
            abort(self._client, self._at, upload)
            raise

    def _send_parts(self, source: BinaryIO, upload: str, progress: Progress) -> list[dict[str, Any]]:
        digest, done, parts, length = hashlib.sha256(), 0, list[dict[str, Any]](), part_size(self._size)

        def read() -> Iterator[tuple[int, bytes]]:
            left, number = self._size, 0
            while left > 0 and (body := _read_exactly(source, min(length, left))):
                digest.update(body)
                left, number = left - len(body), number + 1
                yield number, body

        def send(numbered: tuple[int, bytes]) -> tuple[int, dict[str, Any]]:
            number, body = numbered
            part = {"PartNumber": number, "ChecksumSHA256": _checksum(body)}
            with translated():
                reply = self._client.upload_part(**self._at, UploadId=upload, Body=body, **part)
            return len(body), {**part, "ETag": reply["ETag"]}

        with closing(ahead(send, read(), threads=PARTS_AT_ONCE if length <= LARGEST_TOGETHER else 1)) as sent:
            try:
                for count, part in sent:
                    done += count
                    parts.append(part)
                    progress(done)
            except BaseException:
                # First, so that parts under way are refused instead of waited for; the caller does it once more, for
                # S3 lets a part land after it.
                abort(self._client, self._at, upload)
                raise
        if done != self._size or source.read(1) or digest.hexdigest() != self._sha256:
            raise mismatch("A staged file is not what was written")
        return parts

    def _complete(self, upload: str, parts: list[dict[str, Any]]) -> None:
        try:
            with translated():
                self._client.complete_multipart_upload(**self._at, UploadId=upload, MultipartUpload={"Parts": parts})
        except ExportFailure:
            # The reply may have been lost after the object was made; a retry then says NoSuchUpload.
            if not self._arrived():
                raise

    def _arrived(self) -> bool:
        """Whether the object is there as it was sent; a store that keeps no metadata is judged by size."""
        with translated():
            try:
                head = cast("dict[str, Any]", self._client.head_object(**self._at))
            except boto.ClientError as error:
                if is_missing(error):
                    return False
                raise
        metadata = {name.lower(): value for name, value in head.get("Metadata", {}).items()}
        return bool(head["ContentLength"] == self._size and metadata.get("sha256", self._sha256) == self._sha256)


def abort(client: Any, at: Mapping[str, Any], upload: str) -> None:
    """Take back what was sent of an upload. Best effort: the janitor takes what is left."""
    with suppress(ExportFailure), translated():
        client.abort_multipart_upload(**at, UploadId=upload)


def mismatch(what: str) -> ExportFailure:
    """The failure of bytes that are not those that were written."""
    return ExportFailure(FailureCode.CHECKSUM_MISMATCH, f"{what}. Run the export again.")


def _read_exactly(source: BinaryIO, size: int) -> bytes:
    """``size`` bytes, fewer only at the end: a raw stream may give less than asked for."""
    pieces, left = list[bytes](), size
    while left and (piece := source.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _checksum(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()
