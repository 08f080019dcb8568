"""The staging store: where rows and files wait between steps, on a disk or on S3.

What belongs here: opening, listing and deleting staged objects, and rows as Arrow IPC.
What does not: the delivered files' store (delivery), and what the rows are.

Built on ``pyarrow.fs``, which streams multipart uploads by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs
import pyarrow.ipc

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.settings import local_path


class Staging:
    """Objects under one root, named by ``/``-separated keys.

    Every method raises ``ExportFailure(staging_unavailable)`` when the store fails.
    """

    def __init__(self, url: str, *, s3_endpoint_url: str = "") -> None:
        directory = local_path(url)
        filesystem: pyarrow.fs.FileSystem
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
            filesystem, root = pyarrow.fs.LocalFileSystem(), str(directory)
        else:
            parts = urlsplit(url)
            endpoint = urlsplit(s3_endpoint_url)
            options = {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme} if s3_endpoint_url else {}
            filesystem = pyarrow.fs.S3FileSystem(allow_bucket_creation=False, **options)
            root = (parts.netloc + parts.path).rstrip("/")
        self._local = directory is not None
        self._filesystem = pyarrow.fs.SubTreeFileSystem(root, filesystem)

    @contextmanager
    def create(self, key: str) -> Iterator[BinaryIO]:
        """Write an object from its beginning; it exists whole or not at all once this returns."""
        temporary = f"{key}.partial" if self._local else key
        with _translated():
            if self._local:
                self._filesystem.create_dir(key.rpartition("/")[0], recursive=True)
            stream = self._filesystem.open_output_stream(temporary, compression=None)
        try:
            yield cast(BinaryIO, stream)
        except BaseException:
            _abort(stream)
            if self._local:
                self._filesystem.delete_file(temporary)
            raise
        with _translated():
            stream.close()
            if self._local:
                self._filesystem.move(temporary, key)

    def open(self, key: str) -> pa.NativeFile:
        """Open an object for reading, with random access."""
        with _translated():
            return self._filesystem.open_input_file(key)

    def exists(self, key: str) -> bool:
        """Whether the object is there."""
        with _translated():
            info = self._filesystem.get_file_info([key])[0]
        return bool(info.type == pyarrow.fs.FileType.File)

    def delete_tree(self, prefix: str) -> None:
        """Delete all objects under a prefix; nothing there is no error."""
        with _translated():
            if self._filesystem.get_file_info([prefix])[0].type != pyarrow.fs.FileType.NotFound:
                self._filesystem.delete_dir(prefix)

    def trees(self) -> list[str]:
        """The first level of prefixes."""
        with _translated():
            infos = self._filesystem.get_file_info(pyarrow.fs.FileSelector("", recursive=False))
        return [info.path for info in infos if info.type == pyarrow.fs.FileType.Directory]

    @contextmanager
    def write_batches(self, key: str, schema: pa.Schema) -> Iterator[pa.ipc.RecordBatchFileWriter]:
        """Write batches of one schema as an Arrow IPC file, lz4 (a tenth of the whole path's time)."""
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with (
            self.create(key) as sink,
            pa.ipc.new_file(cast(pa.NativeFile, sink), schema, options=options) as writer,
        ):
            yield writer

    def read_batches(self, key: str) -> Iterator[pa.RecordBatch]:
        """The batches of an Arrow IPC file, one in memory at a time."""
        with self.open(key) as source, _translated(), pa.ipc.open_file(source) as reader:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index)


def read_all(staging: Staging, keys: Iterable[str]) -> Iterator[pa.RecordBatch]:
    """The batches of several staged files, one after the other."""
    for key in keys:
        yield from staging.read_batches(key)


def _abort(stream: pa.NativeFile) -> None:
    try:
        stream.close()
    except OSError:
        return


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        raise ExportFailure(
            FailureCode.STAGING_UNAVAILABLE,
            f"The staging store failed ({type(error).__name__}). Check EXPORT_STAGING_URL, free space and permissions.",
        ) from None
