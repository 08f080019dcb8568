"""The staging store: where rows and files wait between steps, on a disk or on S3.

Built on ``pyarrow.fs``, which streams multipart uploads by itself. It cannot abandon an upload, only end it:
whoever writes takes a key that nobody else has (``unique``), and a key counts once it was handed on.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.settings import aws_region, local_path
from export_pipeline.storage.batches import FrameWriter, read_frames

if TYPE_CHECKING:
    from export_pipeline.storage.s3_staging import S3Objects

_AWS_ERROR = re.compile(r"AWS Error ([A-Z0-9_]{1,64})(?: \[code \d+\])? during (\w{1,64})")
"""How Arrow words a refusal of S3."""
_REFUSALS = frozenset({"ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH"})


def unique(prefix: str) -> str:
    """A prefix of this try alone, so that two runs of one attempt never write to the same key."""
    return f"{prefix}/{secrets.token_hex(4)}"


@contextmanager
def one_try(staging: Staging, prefix: str) -> Iterator[str]:
    """A prefix of this try alone; if it fails, what it wrote is deleted, so that a full disk has its room back."""
    own = unique(prefix)
    try:
        yield own
    except BaseException:
        with suppress(ExportFailure):  # else the janitor does
            staging.delete_tree(own)
        raise


def fingerprint_of(path: Path) -> str:
    """What changes when a file is replaced or written to.

    Raises:
        OSError: there is no such file.
    """
    found = path.stat()
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


class Staging:
    """Objects under one root, named by ``/``-separated keys.

    Every method, and reading and writing what it opened, raises ``ExportFailure``: ``staging_unavailable``
    for what may pass, ``staging_refused`` where S3 denies access, ``staging_lost`` for an object that is gone.
    """

    def __init__(self, url: str, *, s3_endpoint_url: str = "") -> None:
        self._directory = directory = local_path(url)
        filesystem: pyarrow.fs.FileSystem
        self._objects: S3Objects | None = None
        if directory is not None:
            with _translated():
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            filesystem, root = pyarrow.fs.LocalFileSystem(), str(directory)
        else:
            filesystem, root = _s3(s3_endpoint_url), _bucket_and_prefix(url)
            from export_pipeline.storage.s3_staging import S3Objects

            self._objects = S3Objects(url, s3_endpoint_url)
        self._filesystem = pyarrow.fs.SubTreeFileSystem(root, filesystem)

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        """Write an object from its beginning; on a disk it appears once it is whole."""
        stream = self._begin(key)
        try:
            yield cast("BinaryIO", _Stream(stream))
        except BaseException:
            self._abandon(key, stream)
            raise
        self._finish(key, stream)

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """Read an object from its beginning."""
        with self._open(key) as stream:
            yield cast("BinaryIO", _Stream(stream))

    def path(self, key: str) -> Path | None:
        """The file of an object, where staging is a directory of this machine."""
        return None if self._directory is None else self._directory / _inside(key)

    def fingerprint(self, key: str) -> str | None:
        """What changes when the file of an object is replaced or written to: not a checksum. None on S3."""
        path = self.path(key)
        if path is None:
            return None
        with _translated():
            return fingerprint_of(path)

    def delete_tree(self, prefix: str) -> None:
        """Delete all objects under a prefix; nothing there is no error."""
        if self._objects is not None:
            self._objects.delete_tree(_inside(prefix))
            return
        with _translated():
            if self._filesystem.get_file_info([_inside(prefix)])[0].type != pyarrow.fs.FileType.NotFound:
                self._filesystem.delete_dir(prefix)

    def trees(self, below: str = "") -> list[str]:
        """The first level of prefixes, below the root or a prefix."""
        if self._objects is not None:
            return self._objects.trees(below)
        with _translated():
            selector = pyarrow.fs.FileSelector(below, allow_not_found=True, recursive=False)
            infos = self._filesystem.get_file_info(selector)
        return [info.base_name for info in infos if info.type == pyarrow.fs.FileType.Directory]

    def written_at(self, prefix: str) -> datetime | None:
        """When an object under a prefix was last written, of none when a directory was; None if there is neither."""
        if self._objects is not None:
            return self._objects.written_at(_inside(prefix))
        with _translated():
            selector = pyarrow.fs.FileSelector(_inside(prefix), allow_not_found=True, recursive=True)
            infos = [*self._filesystem.get_file_info(selector), *self._filesystem.get_file_info([prefix])]
        files = [info for info in infos if info.type == pyarrow.fs.FileType.File]
        return max((info.mtime for info in files or infos if info.mtime is not None), default=None)

    def abort_uploads(self, older_than: timedelta) -> int:
        """Abort what began to be written longer ago and never ended, where that is not an object yet. How many."""
        return 0 if self._objects is None else self._objects.abort_uploads(older_than)

    @contextmanager
    def write_batches(self, key: str, schema: pa.Schema) -> Iterator[BatchWriter]:
        """Write batches of one schema, lz4 (a tenth of the whole path's time)."""
        stream = self._begin(key)
        try:
            writer = FrameWriter(stream, schema)
            yield BatchWriter(writer)
            with _translated():
                writer.end()
        except BaseException:
            self._abandon(key, stream)
            raise
        self._finish(key, stream)

    def read_batches(self, key: str) -> Iterator[pa.RecordBatch]:
        """The batches that ``write_batches`` wrote, one in memory at a time.

        Raises:
            ExportFailure: ``checksum_mismatch`` if they are not what was written.
        """
        with self._open(key) as source:
            batches = read_frames(source)
            while True:
                with _translated():
                    batch = next(batches, None)
                if batch is None:
                    return
                yield batch

    def _open(self, key: str) -> pa.NativeFile:
        with _translated():
            return self._filesystem.open_input_file(_inside(key))

    def _begin(self, key: str) -> pa.NativeFile:
        with _translated():
            if self._objects is None:
                self._filesystem.create_dir(_inside(key).rpartition("/")[0], recursive=True)
            return self._filesystem.open_output_stream(self._unfinished(_inside(key)), compression=None)

    def _finish(self, key: str, stream: pa.NativeFile) -> None:
        with _translated():
            stream.close()
            if self._objects is None:
                self._filesystem.move(self._unfinished(key), key)

    def _abandon(self, key: str, stream: pa.NativeFile) -> None:
        """Best effort: what stays is the janitor's, and nobody was told its key."""
        with suppress(OSError, pa.ArrowException):
            stream.close()
        with suppress(OSError, pa.ArrowException, ExportFailure):
            if self._objects is not None:
                self._objects.delete(key)
            else:
                self._filesystem.delete_file(self._unfinished(key))

    def _unfinished(self, key: str) -> str:
        return f"{key}.partial" if self._objects is None else key


class BatchWriter:
    """Writes batches of one schema."""

    def __init__(self, writer: FrameWriter) -> None:
        self._writer = writer

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch."""
        with _translated():
            self._writer.write(batch)


class _Stream:
    """A stream of the filesystem whose errors are told as failures of staging."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream

    def write(self, data: bytes | memoryview) -> int:
        with _translated():
            return int(self._stream.write(data))

    def read(self, size: int = -1) -> bytes:
        with _translated():
            return bytes(self._stream.read(size if size >= 0 else None))


def _s3(endpoint_url: str) -> pyarrow.fs.S3FileSystem:
    if not endpoint_url:
        return pyarrow.fs.S3FileSystem(region=aws_region(), allow_bucket_creation=False)
    # The AWS SDK's default checksums come as a trailer, to which S3-compatible stores answer 411.
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    endpoint = urlsplit(endpoint_url)
    return pyarrow.fs.S3FileSystem(
        region=aws_region(),
        endpoint_override=endpoint.netloc,
        scheme=endpoint.scheme,
        allow_bucket_creation=False,
    )


def _bucket_and_prefix(url: str) -> str:
    parts = urlsplit(url)
    return (parts.netloc + parts.path).rstrip("/")


def _inside(key: str) -> str:
    if not key or key.startswith("/") or ".." in key.split("/"):
        raise ValueError("a staging key names a place below the root")
    return key


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, PermissionError, pa.ArrowInvalid) as error:
        raise ExportFailure(
            FailureCode.STAGING_LOST,
            f"What an earlier step staged is gone or cannot be read ({type(error).__name__}). Re-execute the run from "
            "its start, or check the permissions under EXPORT_STAGING_URL.",
        ) from None
    except (OSError, pa.ArrowException) as error:
        # The rest of the message may hold a key.
        found = _AWS_ERROR.search(str(error))
        what = f"{found[1]} on {found[2]}" if found else type(error).__name__
        if found and found[1] in _REFUSALS:
            raise ExportFailure(
                FailureCode.STAGING_REFUSED,
                f"S3 refused ({what}). Check EXPORT_STAGING_URL, EXPORT_S3_ENDPOINT_URL and the rights of the AWS "
                "credentials.",
            ) from None
        raise ExportFailure(
            FailureCode.STAGING_UNAVAILABLE,
            f"The staging store failed ({what}). Check EXPORT_STAGING_URL and its free space.",
        ) from None
