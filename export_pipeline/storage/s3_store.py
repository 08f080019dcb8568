"""S3 (and what speaks like it) as the store of delivered files."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qs, quote, urlsplit

import botocore.exceptions as boto

from export_pipeline.concurrency import map_ahead
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.storage.objects import Link, ObjectDescription, Progress, content_disposition
from export_pipeline.storage.s3_client import is_aws, is_missing, translated, uploads_begun_until

# One object's way into S3: in one piece or in parts, whole or not at all.


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

        with closing(map_ahead(send, read(), threads=PARTS_AT_ONCE if length <= LARGEST_TOGETHER else 1)) as sent:
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


LONGEST_LINK = timedelta(days=7)
"""S3's cap on a presigned URL."""
UNKNOWN_SESSION = timedelta(hours=1)
"""What is assumed of a static session token (AWS_SESSION_TOKEN), which does not tell when it dies."""
_CACHE_CONTROL = "private, no-store"
"""The files hold personal data: no shared or disk cache may keep them beyond the link."""


class S3Store:
    """Objects in a bucket, under a prefix; implements ``delivery.store.Store``.

    ``signer`` is the client that signs links, where recipients reach the store by another endpoint than we do.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        prefix: str,
        *,
        signer: Any = None,
        server_side_encryption: str = "none",
        kms_key_id: str = "",
    ) -> None:
        self._client = client
        self._signer = client if signer is None else signer
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
        self._encryption: dict[str, str] = {}
        if server_side_encryption != "none":
            self._encryption["ServerSideEncryption"] = server_side_encryption
            if kms_key_id:
                self._encryption["SSEKMSKeyId"] = kms_key_id

    def put(
        self, source: BinaryIO, description: ObjectDescription, *, size: int, sha256: str, progress: Progress
    ) -> None:
        """Upload, then look at what arrived: its size, and every part's SHA-256 where the store checks them."""
        headers = {
            **self._at(description.key),
            **self._encryption,
            "ContentType": description.media_type,
            "ContentDisposition": content_disposition(description.download_name),
            "CacheControl": _CACHE_CONTROL,
            "Metadata": {"sha256": sha256},
        }
        if description.content_encoding:
            headers["ContentEncoding"] = description.content_encoding
        Upload(self._client, headers, size, sha256).send(source, progress)
        if self.size(description.key) != size:
            with contextlib.suppress(ExportFailure):
                self.delete(description.key)
            raise mismatch("The object in the store has another size than the file that was sent")

    def link_file(self, path: Path, description: ObjectDescription, *, size: int) -> bool:  # noqa: ARG002
        """Never: bytes have to travel."""
        return False

    def open(self, key: str) -> BinaryIO:
        """Stream an object. A connection that ends early raises ``store_unavailable``."""
        with translated():
            reply = self._client.get_object(**self._at(key))
        return io.BufferedReader(_Download(reply["Body"], int(reply["ContentLength"])), buffer_size=2**20)

    def size(self, key: str) -> int | None:
        """The object's size in bytes, None if there is none."""
        head = self._head(key)
        return None if head is None else int(head["ContentLength"])

    def fingerprint(self, key: str) -> str | None:
        """The object's ETag, None if there is none."""
        head = self._head(key)
        return None if head is None else str(head["ETag"])

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        with translated():
            self._client.delete_object(**self._at(key))

    def link(self, description: ObjectDescription, lifetime: timedelta) -> Link:
        """A presigned GET that also says name, type and encoding (not every store keeps the object's own).

        It lives for ``lifetime``, seven days or as long as the signing credentials, whichever ends
        first. A session token that does not tell its end is taken to live one hour.
        """
        with translated():
            dies = _credentials_expiry(self._signer)
            lifetime = min(lifetime, LONGEST_LINK)
            if dies is not None:
                lifetime = min(lifetime, dies - datetime.now(UTC))
            parameters = {
                **self._at(description.key),
                "ResponseContentDisposition": content_disposition(description.download_name),
                "ResponseContentType": description.media_type,
                "ResponseCacheControl": _CACHE_CONTROL,
            }
            if description.content_encoding:
                parameters["ResponseContentEncoding"] = description.content_encoding
            url = self._signer.generate_presigned_url(
                "get_object", Params=parameters, ExpiresIn=max(1, int(lifetime.total_seconds()))
            )
        ends = _signature_expiry(url)
        return Link(url, ends if dies is None else min(ends, dies))

    def object_url(self, key: str) -> str:
        """The object in the AWS console, or its unsigned URL at an S3-compatible store."""
        path = quote(self._prefix + key)
        endpoint = self._client.meta.endpoint_url
        if not is_aws(endpoint):
            return f"{endpoint}/{self._bucket}/{path}"
        return f"https://console.aws.amazon.com/s3/object/{self._bucket}?prefix={quote(self._prefix + key, safe='')}"

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys of all objects that begin with ``prefix``."""
        for page in self._pages(Prefix=self._prefix + prefix):
            for item in page.get("Contents", []):
                yield item["Key"].removeprefix(self._prefix)

    def trees(self) -> Iterator[str]:
        """The first pieces of all keys."""
        for page in self._pages(Prefix=self._prefix, Delimiter="/"):
            for item in page.get("CommonPrefixes", []):
                yield item["Prefix"].removeprefix(self._prefix).rstrip("/")

    def written_at(self, prefix: str) -> datetime | None:
        """When an object whose key begins with ``prefix`` was last written."""
        pages = self._pages(Prefix=self._prefix + prefix)
        return max((item["LastModified"] for page in pages for item in page.get("Contents", [])), default=None)

    def abort_uploads(self, older_than: timedelta) -> int:
        """Abort multipart uploads that began longer ago: their parts cost money until then. How many."""
        newest, count = datetime.now(UTC) - older_than, 0
        with translated():
            for key, upload in uploads_begun_until(newest, self._client, self._bucket, self._prefix):
                abort(self._client, {"Bucket": self._bucket, "Key": key}, upload)
                count += 1
        return count

    def _pages(self, **options: str) -> Iterator[dict[str, Any]]:
        pages = iter(self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, **options))
        while True:
            with translated():
                page = next(pages, None)
            if page is None:
                return
            yield page

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _head(self, key: str) -> dict[str, Any] | None:
        with translated():
            try:
                return cast("dict[str, Any]", self._client.head_object(**self._at(key)))
            except boto.ClientError as error:
                if is_missing(error):
                    return None
                raise


class _Download(io.RawIOBase):
    """A GET's body that raises where it ends before its announced length."""

    def __init__(self, body: Any, length: int) -> None:
        super().__init__()
        self._body = body
        self._left = length

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        if self._left == 0:
            return 0
        with translated():
            chunk = self._body.read(min(len(view), self._left))
        if not chunk:
            raise ExportFailure(
                FailureCode.STORE_UNAVAILABLE, f"A download from S3 ended {self._left} bytes early. Try again."
            )
        self._left -= len(chunk)
        view[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        if not self.closed:
            self._body.close()
        super().close()


def _credentials_expiry(client: Any) -> datetime | None:
    """When the client's credentials die (UTC), None for ones that do not; renewed first if they are due."""
    # botocore has no public way to them; a session of ours could hold others than the client's.
    credentials = client._get_credentials()  # noqa: SLF001
    if credentials is None:
        raise boto.NoCredentialsError
    frozen = credentials.get_frozen_credentials()
    expiry: datetime | None = getattr(credentials, "_expiry_time", None)
    if expiry is not None:
        return expiry.astimezone(UTC)
    return datetime.now(UTC) + UNKNOWN_SESSION if frozen.token else None


def _signature_expiry(url: str) -> datetime:
    query = parse_qs(urlsplit(url).query)
    signed = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return signed + timedelta(seconds=int(query["X-Amz-Expires"][0]))
