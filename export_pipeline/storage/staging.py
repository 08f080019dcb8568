"""The staging store: where rows and files wait between steps, on a disk or on S3.

Built on ``pyarrow.fs``, which streams multipart uploads by itself but can only end an upload, not abandon it. So every
try writes under keys of its own (``unique``), and a key counts only once a step has returned it.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.settings import local_path
from export_pipeline.storage.batches import read_batches, write_batch, write_frame

if TYPE_CHECKING:
    from export_pipeline.storage.s3_client import Bucket

WriteBatch = Callable[[pa.RecordBatch], None]
_CLOCK_SKEW = timedelta(hours=1)
"""How far S3's clock may be ahead of this machine's."""

_AWS_ERROR = re.compile(r"AWS Error ([A-Z0-9_]{1,64})(?: \[code \d+\])? during (\w{1,64})")
"""How Arrow reports an error of S3."""
_REFUSALS = frozenset({"ACCESS_DENIED", "NO_SUCH_BUCKET", "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH"})


def unique(prefix: str) -> str:
    """A prefix for one try only, so that two runs of one attempt never write to the same key."""
    return f"{prefix}/{secrets.token_hex(4)}"


@contextmanager
def one_try(staging: Staging, prefix: str) -> Iterator[str]:
    """A prefix for one try; if the try fails, what it wrote is deleted, which frees a full disk."""
    own = unique(prefix)
    try:
        yield own
    except BaseException:
        with suppress(ExportFailure):  # else the janitor deletes it
            staging.delete_tree(own)
        raise


def fingerprint_of(found: os.stat_result) -> str:
    """What changes when a file is replaced or written to."""
    return f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"


class Staging:
    """Objects under one root, named by ``/``-separated keys.

    Every method, and reading and writing what it opened, raises ``ExportFailure``: ``staging_unavailable`` for what may
    pass, ``staging_refused`` if S3 denies access, ``staging_lost`` for an object that is gone.
    """

    def __init__(self, url: str, *, s3_endpoint_url: str = "") -> None:
        self._directory = directory = local_path(url)
        self._bucket: Bucket | None = None
        filesystem: pyarrow.fs.FileSystem
        if directory is not None:
            with _translated():
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            filesystem, root = pyarrow.fs.LocalFileSystem(), str(directory)
        else:
            from export_pipeline.storage.s3_client import STAGING, Bucket, arrow_filesystem, build_client, translated

            parts = urlsplit(url)
            filesystem, root = arrow_filesystem(s3_endpoint_url), (parts.netloc + parts.path).rstrip("/")
            with translated(STAGING):
                self._bucket = Bucket(build_client(s3_endpoint_url), parts.netloc, parts.path, STAGING)
        self._filesystem = pyarrow.fs.SubTreeFileSystem(root, filesystem)

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        """Write an object from its beginning; on a disk it appears once it is whole."""
        unfinished = f"{_checked(key)}.partial" if self._bucket is None else _checked(key)
        with _translated():
            if self._bucket is None:
                self._filesystem.create_dir(key.rpartition("/")[0], recursive=True)
            stream = self._filesystem.open_output_stream(unfinished, compression=None)
        try:
            yield cast("BinaryIO", _Stream(stream))
        except BaseException:
            # Best effort: no step returned the key, and the janitor deletes what stays.
            with suppress(OSError, pa.ArrowException):
                stream.close()
            with suppress(OSError, pa.ArrowException, ExportFailure):
                if self._bucket is None:
                    self._filesystem.delete_file(unfinished)
                else:
                    self._bucket.delete(key)
            raise
        with _translated():
            stream.close()
            if self._bucket is None:
                self._filesystem.move(unfinished, key)

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """Read an object from its beginning."""
        with _translated():
            stream = self._filesystem.open_input_file(_checked(key))
        with stream:
            yield cast("BinaryIO", _Stream(stream))

    @contextmanager
    def write_batches(self, key: str) -> Iterator[WriteBatch]:
        """Give a function that writes a batch."""
        with self.create(key) as sink:
            yield partial(write_batch, sink)
            write_frame(sink, pa.py_buffer(b""))

    def read_batches(self, key: str) -> Iterator[pa.RecordBatch]:
        """Yield what ``write_batches`` wrote, one in memory at a time; ``checksum_mismatch`` if it is anything else."""
        with self.open(key) as source:
            yield from read_batches(source)

    def path(self, key: str) -> Path | None:
        """The file of an object, if staging is a local directory."""
        return None if self._directory is None else self._directory / _checked(key)

    def fingerprint(self, key: str) -> str | None:
        """What changes when the file of an object is replaced or written to: not a checksum. None on S3."""
        path = self.path(key)
        if path is None:
            return None
        with _translated():
            return fingerprint_of(path.stat())

    # On S3 the rest goes by boto3: after each deletion ``pyarrow.fs`` writes an empty object named like the parent
    # "directory". S3 keeps it for ever, and some S3-compatible stores refuse it.

    def delete_tree(self, prefix: str) -> None:
        """Delete all objects under a prefix, and abort the uploads that are under way there; none is no error."""
        below = f"{_checked(prefix)}/"
        if self._bucket is not None:
            for key in self._bucket.keys(below):
                self._bucket.delete(key)
            self._bucket.abort_uploads(-_CLOCK_SKEW, prefix=below)
            return
        with _translated():
            if self._filesystem.get_file_info([prefix])[0].type != pyarrow.fs.FileType.NotFound:
                self._filesystem.delete_dir(prefix)

    def trees(self, below: str = "") -> list[str]:
        """The first pieces of all keys, at the root or below a prefix."""
        if self._bucket is not None:
            return list(self._bucket.trees(below))
        with _translated():
            selector = pyarrow.fs.FileSelector(below, allow_not_found=True, recursive=False)
            infos = self._filesystem.get_file_info(selector)
        return [info.base_name for info in infos if info.type == pyarrow.fs.FileType.Directory]

    def written_at(self, prefix: str) -> datetime | None:
        """When an object under a prefix was last written; without objects, when a directory was; else None."""
        if self._bucket is not None:
            return self._bucket.written_at(f"{_checked(prefix)}/")
        with _translated():
            selector = pyarrow.fs.FileSelector(_checked(prefix), allow_not_found=True, recursive=True)
            infos = [*self._filesystem.get_file_info(selector), *self._filesystem.get_file_info([prefix])]
        files = [info for info in infos if info.type == pyarrow.fs.FileType.File]
        return max((info.mtime for info in files or infos if info.mtime is not None), default=None)

    def abort_uploads(self, older_than: timedelta) -> int:
        """On S3, abort uploads that began longer ago: a killed process cannot end its own. Returns how many."""
        return 0 if self._bucket is None else self._bucket.abort_uploads(older_than)


class _Stream:
    """A stream of the file system whose errors are failures of staging."""

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream = stream

    def write(self, data: bytes | memoryview | pa.Buffer) -> int:
        with _translated():
            return int(self._stream.write(data))

    def read(self, size: int = -1) -> bytes:
        with _translated():
            return bytes(self._stream.read(size if size >= 0 else None))

    def read_buffer(self, size: int) -> pa.Buffer:
        with _translated():
            return self._stream.read_buffer(size)

    def size(self) -> int:
        with _translated():
            return int(self._stream.size())


def _checked(key: str) -> str:
    if not key or key.startswith("/") or ".." in key.split("/"):
        raise ValueError("a staging key must name a place below the root")
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
