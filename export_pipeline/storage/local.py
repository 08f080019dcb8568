"""A directory as the store of delivered files: the default, which needs no other service."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.storage.staging import fingerprint_of
from export_pipeline.storage.store import Link, ObjectDescription, Progress

_CHUNK = 8 * 2**20
_TEMPORARY = ".partial"
_GONE = (FileNotFoundError, NotADirectoryError)
_TRANSIENT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ESTALE})


class LocalStore:
    """Objects as files under one directory; implements ``storage.store.Store``."""

    def __init__(self, directory: Path) -> None:
        with _translated():
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._directory = directory.resolve()

    def put(
        self, source: BinaryIO, description: ObjectDescription, *, size: int, sha256: str, progress: Progress
    ) -> None:
        """Write beside the target, then rename: a reader sees the whole object or none."""
        with _atomic(self._path(description.key)) as temporary:
            with _translated():
                sink = temporary.open("xb")
            with sink:
                _copy(source, sink, size=size, sha256=sha256, progress=progress)

    def link_file(self, path: Path, description: ObjectDescription, *, size: int) -> bool:
        """Make a hard link, if the file system can: the same bytes, which were hashed as they were written."""
        with suppress(OSError), _atomic(self._path(description.key)) as temporary:
            os.link(path, temporary)
            if (found := temporary.stat().st_size) != size:
                raise _mismatch(f"it has {found} of {size} bytes")
            _sync(temporary)
            return True
        return False

    def open(self, key: str) -> BinaryIO:
        """Open an object for reading. A disk that fails raises ``store_unavailable``."""
        path = self._path(key)
        with _translated():
            return io.BufferedReader(_File(path), buffer_size=2**20)

    def size(self, key: str) -> int | None:
        """The object's size in bytes, None if there is no such object."""
        found = self._stat(key)
        return None if found is None else found.st_size

    def fingerprint(self, key: str) -> str | None:
        """The file's inode, time of change and size, None if there is no such object."""
        found = self._stat(key)
        return None if found is None else fingerprint_of(found)

    def delete(self, key: str) -> None:
        """Delete an object, and the directories that are empty afterwards."""
        path = self._path(key)
        with _translated():
            path.unlink(missing_ok=True)
        with suppress(OSError):
            for parent in path.parents:
                if parent == self._directory:
                    break
                parent.rmdir()

    def link(self, description: ObjectDescription, lifetime: timedelta) -> Link:  # noqa: ARG002 - a file has no lifetime
        """A ``file:`` URI, which never expires (``expires_at`` is None)."""
        return Link(self.object_url(description.key), None)

    def object_url(self, key: str) -> str:
        """The ``file:`` URI of the object."""
        return self._path(key).as_uri()

    def keys(self, prefix: str) -> Iterator[str]:
        """The keys of all objects that begin with ``prefix``."""
        directory, _, _ = prefix.rpartition("/")
        with _translated():
            paths = sorted(_files(self._path(directory) if directory else self._directory, ignored=_GONE))
        for path in paths:
            key = path.relative_to(self._directory).as_posix()
            if key.startswith(prefix) and not _is_temporary(path):
                yield key

    def trees(self) -> Iterator[str]:
        """The first pieces of all keys."""
        with _translated():
            found = sorted(entry.name for entry in os.scandir(self._directory) if entry.is_dir(follow_symlinks=False))
        yield from found

    def written_at(self, prefix: str) -> datetime | None:
        """When an object whose key begins with ``prefix`` was last written (UTC)."""
        times: list[float] = []
        with _translated():
            for key in self.keys(prefix):
                with suppress(*_GONE):
                    times.append(self._path(key).stat().st_mtime)
        return datetime.fromtimestamp(max(times), UTC) if times else None

    def abort_uploads(self, older_than: timedelta) -> int:
        """Delete the unfinished files of killed processes. Returns how many."""
        newest = time.time() - older_than.total_seconds()
        count = 0
        with _translated():
            # The root of a file system has a directory that nobody may read (lost+found).
            for path in _files(self._directory, ignored=(*_GONE, PermissionError)):
                with suppress(FileNotFoundError):
                    if _is_temporary(path) and path.stat().st_mtime <= newest:
                        path.unlink()
                        count += 1
        return count

    def _stat(self, key: str) -> os.stat_result | None:
        with _translated():
            try:
                return self._path(key).stat()
            except _GONE:
                return None

    def _path(self, key: str) -> Path:
        """The file of a key; refuses a key that would lead out of the directory, also through links."""
        pieces = key.split("/")
        path = self._directory.joinpath(*pieces)
        if any(
            piece in ("", ".", "..") or "\0" in piece or "\\" in piece for piece in pieces
        ) or not path.resolve().is_relative_to(self._directory):
            raise ExportFailure(FailureCode.STORE_REFUSED, "An object's key would lead out of the store.")
        return path


class _File(io.FileIO):
    """A file whose read errors are failures of the store."""

    def readinto(self, buffer: Any, /) -> int | None:
        with _translated():
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with _translated():
            return super().readall()


@contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """Give a temporary path, and rename it to ``path`` once it is written whole."""
    # Hidden and with a random name, so that two attempts at one key never write into one file.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY}")
    try:
        with _translated():
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with _translated():
            temporary.replace(path)
            _sync(path.parent)
    finally:
        # Not only on failure: a rename between two links to one file does nothing, and leaves both (POSIX).
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _copy(source: BinaryIO, sink: BinaryIO, *, size: int, sha256: str, progress: Progress) -> None:
    digest, done = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        digest.update(chunk)
        done += len(chunk)
        with _translated():
            sink.write(chunk)
        progress(done)
    if done != size or digest.hexdigest() != sha256:
        raise _mismatch(f"{done} of {size} bytes were read{'' if done != size else ', with another SHA-256'}")
    with _translated():
        sink.flush()
        os.fsync(sink.fileno())


def _mismatch(what: str) -> ExportFailure:
    return ExportFailure(
        FailureCode.CHECKSUM_MISMATCH, f"A staged file is not what was written: {what}. Run the export again."
    )


def _sync(path: Path) -> None:
    """Make a file's bytes, or a directory's names, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(top: Path, *, ignored: tuple[type[OSError], ...]) -> Iterator[Path]:
    """All files below a directory; skips a directory whose listing fails with an ``ignored`` error."""

    def fail(error: OSError) -> None:
        if not isinstance(error, ignored):
            raise error

    for directory, _, names in os.walk(top, onerror=fail):
        yield from (Path(directory, name) for name in names)


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY)


@contextmanager
def _translated() -> Iterator[None]:
    """Raise an ``OSError`` as a failure that names the error, never the path (it holds the key)."""
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, type(error).__name__)
        if error.errno in _TRANSIENT:
            code, advice = FailureCode.STORE_UNAVAILABLE, "Check free space and the disk"
        elif error.errno == errno.ENOENT:
            code, advice = FailureCode.STORE_REFUSED, "The object does not exist. Check retention, and who else deletes"
        else:
            code, advice = FailureCode.STORE_REFUSED, "Check that the process may write there"
        message = f"The store directory failed ({name}). {advice} (EXPORT_STORE_URL)."
        raise ExportFailure(code, message) from None
