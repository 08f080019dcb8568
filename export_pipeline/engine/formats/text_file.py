"""One file of a text format: a head, whole rows, a tail; plain or as a single gzip member.

What belongs here: the frame around encoded rows that csv, json and ndjson share, under the ceiling.
What does not: what the rows, the head and the tail say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from export_pipeline.engine.formats import deflate
from export_pipeline.engine.formats.base import FormatOptions
from export_pipeline.engine.formats.rows import EncodedRows, Filler, Pack, Piece
from export_pipeline.failures import ExportFailure, FailureCode

GZIP_MEDIA_TYPE = "application/gzip"


@dataclass(frozen=True)
class Frame:
    """What stands around the rows of a text file."""

    head: bytes = b""
    tail: bytes = b""
    empty_tail: bytes = b""
    """The tail of a file without rows."""
    first_skip: int = 0
    """Bytes (a separator) that the first row of a file leaves out."""


def gzips(options: FormatOptions) -> bool:
    """Whether files are to be gzipped; a compression that is not known fails."""
    if options.compression not in {"none", "gzip"}:
        message = f"compression {options.compression!r} is not known; use 'none' or 'gzip'"
        raise ExportFailure(FailureCode.UNKNOWN_COMPRESSION, message, field="compression")
    return options.compression == "gzip"


def too_small(format_name: str, max_bytes: int, needed: int) -> ExportFailure:
    """The failure of a ceiling below what even a file without rows needs."""
    return ExportFailure(
        FailureCode.FILE_SIZE_TOO_SMALL,
        f"a {format_name} file without rows needs {needed} bytes, more than the limit of {max_bytes}; raise the limit",
        field="max_file_size_mb",
    )


class TextFile:
    """Writes encoded rows between a head and a tail, never past ``max_bytes``."""

    def __init__(
        self, sink: BinaryIO, frame: Frame, *, name: str, max_bytes: int, gzip: bool, pack: Pack = deflate.pack
    ) -> None:
        self._sink = sink
        self._frame = frame
        self._gzip = gzip
        self._checksum = deflate.Checksum()
        self._filler = Filler(pack if gzip else memoryview, total=max_bytes, compresses=gzip)
        self._left = max_bytes - self._closing_size()
        self._begun = False
        opening = self._opening()
        if len(opening) > self._left:
            raise too_small(name, max_bytes, max_bytes - self._left + len(opening))
        self._put(opening)

    def write(self, encoded: EncodedRows, start: int) -> int:
        """Take as many rows as fit (see ``FileWriter``)."""
        at, stop = start, len(encoded)
        while at < stop:
            skip = 0 if self._begun else self._frame.first_skip
            piece = self._filler.next(encoded, at, stop, room=self._left, skip=skip, begun=self._begun)
            if piece is None:
                break
            self._commit(piece)
            at = piece.stop
        return at - start

    def close(self) -> None:
        """Write the tail."""
        tail = self._frame.tail if self._begun else self._frame.empty_tail
        if not self._gzip:
            self._sink.write(tail)
            return
        self._checksum.add(tail)
        self._sink.write(_packed(tail) + deflate.END + self._checksum.gzip_trailer())

    def _opening(self) -> bytes:
        head = self._frame.head
        if not self._gzip:
            return head
        self._checksum.add(head)
        return deflate.GZIP_HEADER + _packed(head)

    def _closing_size(self) -> int:
        tails = (self._frame.tail, self._frame.empty_tail)
        if not self._gzip:
            return max(map(len, tails))
        return max(len(_packed(tail)) for tail in tails) + len(deflate.END) + deflate.GZIP_TRAILER_SIZE

    def _commit(self, piece: Piece) -> None:
        if self._gzip:
            self._checksum.add(piece.raw)
        self._put(piece.packed)
        self._begun = True

    def _put(self, data: bytes | memoryview) -> None:
        self._sink.write(data)
        self._left -= len(data)


def _packed(data: bytes) -> bytes:
    return deflate.pack(data) if data else b""
