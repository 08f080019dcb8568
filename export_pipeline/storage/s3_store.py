"""S3 (and S3-compatible stores) as the store of delivered files."""

from __future__ import annotations

import base64
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
from export_pipeline.storage.s3_client import STORE, Bucket, error_code, is_aws, translated
from export_pipeline.storage.store import Link, ObjectDescription, Progress, content_disposition

LONGEST_LINK = timedelta(days=7)
"""S3's limit for a presigned URL."""
UNKNOWN_SESSION = timedelta(hours=1)
"""The assumed lifetime of a static session token (AWS_SESSION_TOKEN), which does not say when it expires."""
_CACHE_CONTROL = "private, no-store"
"""The files hold personal data: no shared or disk cache may keep them beyond the link."""
MINIMUM_PART = 8 * 2**20
"""Bytes; S3's own minimum is 5 MiB."""
MAXIMUM_PARTS = 10_000
PARTS_AT_ONCE = 2
LARGEST_PARALLEL_PART = 32 * 2**20
"""Bytes. Larger parts are sent one at a time, so that only one is in memory."""


def part_size(size: int) -> int:
    """Bytes of each part (the last may be shorter) of an object of ``size`` bytes: whole MiB, 10,000 parts at most."""
    smallest = -(-size // MAXIMUM_PARTS)
    return max(MINIMUM_PART, -(-smallest // 2**20) * 2**20)


class S3Store(Bucket):
    """Objects in a bucket, under a prefix; implements ``storage.store.Store``.

    ``signer`` is the client that signs links, if recipients reach the store by another endpoint than this process.
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
        super().__init__(client, bucket, prefix, STORE)
        self._signer = client if signer is None else signer
        self._encryption: dict[str, str] = {}
        if server_side_encryption != "none":
            self._encryption["ServerSideEncryption"] = server_side_encryption
            if kms_key_id:
                self._encryption["SSEKMSKeyId"] = kms_key_id

    def put(
        self, source: BinaryIO, description: ObjectDescription, *, size: int, sha256: str, progress: Progress
    ) -> None:
        """Upload, then check what arrived: its size, and every part's SHA-256 where the store verifies them."""
        kept = {**self.at(description.key), **self._encryption, "Metadata": {"sha256": sha256}}
        headers = kept | _served(description)
        _Upload(self, headers, size, sha256).send(source, progress)
        if self.size(description.key) != size:
            with suppress(ExportFailure):
                self.delete(description.key)
            raise _mismatch("The object in the store has another size than the file that was sent")

    def link_file(self, path: Path, description: ObjectDescription, *, size: int) -> bool:  # noqa: ARG002
        """Never: S3 has no links."""
        return False

    def open(self, key: str) -> BinaryIO:
        """Stream an object. A connection that ends early raises ``store_unavailable``."""
        with translated():
            reply = self.client.get_object(**self.at(key))
        return io.BufferedReader(_Download(reply["Body"], int(reply["ContentLength"])), buffer_size=2**20)

    def size(self, key: str) -> int | None:
        """The object's size in bytes, None if there is none."""
        head = self.head(key)
        return None if head is None else int(head["ContentLength"])

    def fingerprint(self, key: str) -> str | None:
        """The object's ETag, None if there is no object."""
        head = self.head(key)
        return None if head is None else str(head["ETag"])

    def head(self, key: str) -> dict[str, Any] | None:
        """The reply to a HEAD of the object, None if there is no object."""
        with translated():
            try:
                return cast("dict[str, Any]", self.client.head_object(**self.at(key)))
            except boto.ClientError as error:
                if error_code(error) in ("404", "NoSuchKey", "NotFound"):
                    return None
                raise

    def link(self, description: ObjectDescription, lifetime: timedelta) -> Link:
        """A presigned GET that also carries name, type and encoding (not every store keeps the object's own).

        It lives for ``lifetime``, seven days or as long as the signing credentials, whichever ends first. A session
        token that does not say when it expires is assumed to live one hour.
        """
        with translated():
            credentials_end = _credentials_expiry(self._signer)
            lifetime = min(lifetime, LONGEST_LINK)
            if credentials_end is not None:
                lifetime = min(lifetime, credentials_end - datetime.now(UTC))
            headers = {f"Response{name}": value for name, value in _served(description).items()}
            parameters = self.at(description.key) | headers
            url = self._signer.generate_presigned_url(
                "get_object", Params=parameters, ExpiresIn=max(1, int(lifetime.total_seconds()))
            )
        query = parse_qs(urlsplit(url).query)
        signed = datetime.strptime(query["X-Amz-Date"][0], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        ends = signed + timedelta(seconds=int(query["X-Amz-Expires"][0]))
        return Link(url, ends if credentials_end is None else min(ends, credentials_end))

    def object_url(self, key: str) -> str:
        """The object in the AWS console, or its unsigned URL at an S3-compatible store."""
        endpoint = self.client.meta.endpoint_url
        if not is_aws(endpoint):
            return f"{endpoint}/{self.name}/{quote(self.prefix + key)}"
        return f"https://console.aws.amazon.com/s3/object/{self.name}?prefix={quote(self.prefix + key, safe='')}"


class _Upload:
    """Sends an object of ``size`` bytes whose SHA-256 (hex) is known, in one piece or in parts, whole or not at all.

    ``headers`` are the arguments that say where and how it is kept.
    """

    def __init__(self, store: S3Store, headers: Mapping[str, Any], size: int, sha256: str) -> None:
        self._store = store
        self._client = store.client
        self._headers = headers
        self._at = {"Bucket": headers["Bucket"], "Key": headers["Key"]}
        self._size = size
        self._sha256 = sha256

    def send(self, source: BinaryIO, progress: Progress) -> None:
        """Send everything; ``checksum_mismatch`` if the source holds something else."""
        if self._size > MINIMUM_PART:
            self._in_parts(source, progress)
            return
        body = _read_exactly(source, self._size + 1)
        if len(body) != self._size or hashlib.sha256(body).hexdigest() != self._sha256:
            raise _mismatch("A staged file is not what was written")
        with translated():
            self._client.put_object(**self._headers, Body=body, ChecksumSHA256=_checksum(body))
        progress(self._size)

    def _in_parts(self, source: BinaryIO, progress: Progress) -> None:
        with translated():
            upload = self._client.create_multipart_upload(**self._headers, ChecksumAlgorithm="SHA256")["UploadId"]
        try:
            self._complete(upload, self._send_parts(source, upload, progress))
        except BaseException:
            self._abort(upload)
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

        threads = PARTS_AT_ONCE if length <= LARGEST_PARALLEL_PART else 1
        with closing(map_ahead(send, read(), threads=threads)) as sent:
            try:
                for count, part in sent:
                    done += count
                    parts.append(part)
                    progress(done)
            except BaseException:
                # Abort first, so that S3 refuses the parts under way instead of making us wait for them. The caller
                # aborts once more, because S3 lets a part land after it.
                self._abort(upload)
                raise
        if done != self._size or source.read(1) or digest.hexdigest() != self._sha256:
            raise _mismatch("A staged file is not what was written")
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
        """Whether the object is there as it was sent; in a store that keeps no metadata, by its size only."""
        head = self._store.head(self._headers["Key"].removeprefix(self._store.prefix))
        if head is None:
            return False
        metadata = {name.lower(): value for name, value in head.get("Metadata", {}).items()}
        return bool(head["ContentLength"] == self._size and metadata.get("sha256", self._sha256) == self._sha256)

    def _abort(self, upload: str) -> None:
        self._store.abort(self._headers["Key"], upload)


class _Download(io.RawIOBase):
    """The body of a GET; raises if it ends before its announced length."""

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


def _served(description: ObjectDescription) -> dict[str, str]:
    """The headers with which the object is downloaded."""
    headers = {
        "ContentType": description.media_type,
        "ContentDisposition": content_disposition(description.download_name),
        "CacheControl": _CACHE_CONTROL,
    }
    return headers | ({"ContentEncoding": description.content_encoding} if description.content_encoding else {})


def _mismatch(what: str) -> ExportFailure:
    return ExportFailure(FailureCode.CHECKSUM_MISMATCH, f"{what}. Run the export again.")


def _read_exactly(source: BinaryIO, size: int) -> bytes:
    """``size`` bytes, fewer only at the end: a raw stream may return less than requested."""
    pieces, left = list[bytes](), size
    while left and (piece := source.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _checksum(body: bytes) -> str:
    return base64.b64encode(hashlib.sha256(body).digest()).decode()


def _credentials_expiry(client: Any) -> datetime | None:
    """When the client's credentials expire (UTC), None if never. Renews them first if they are due."""
    # botocore has no public way to them; a session of ours could hold others than the client's.
    credentials = client._get_credentials()  # noqa: SLF001
    if credentials is None:
        raise boto.NoCredentialsError
    frozen = credentials.get_frozen_credentials()
    expiry: datetime | None = getattr(credentials, "_expiry_time", None)
    if expiry is not None:
        return expiry.astimezone(UTC)
    return datetime.now(UTC) + UNKNOWN_SESSION if frozen.token else None
