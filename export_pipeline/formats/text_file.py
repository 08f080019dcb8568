"""One file of a text format: a head, whole rows, a tail; plain or as a single gzip member."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.formats import deflate
from export_pipeline.formats.base import FormatOptions

# Encoded rows of a text format, and how many of them fit into what is left of a file.


RowEnds = npt.NDArray[np.int64]
Pack = Callable[[memoryview], bytes | memoryview]


class EncodedRows:
    """Whole rows one after another in one buffer; where each ends is found only when it is asked."""

    def __init__(self, data: memoryview, rows: int, find_ends: Callable[[], RowEnds]) -> None:
        self._data = data
        self._rows = rows
        self._find_ends = find_ends

    @classmethod
    def from_series(cls, rows: pl.Series) -> Self:
        """Of a text series with one encoded row a value: its Arrow buffers are the answer already."""
        array = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
        _, offsets, data = array.buffers()
        ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(rows) + 1]
        first = int(ends[0])
        view = memoryview(data)[first : int(ends[-1])] if data is not None else memoryview(b"")
        return cls(view, len(rows), lambda: ends[1:] - first)

    def __len__(self) -> int:
        return self._rows

    @cached_property
    def ends(self) -> RowEnds:
        """The offset after each row's last byte."""
        return self._find_ends()

    def slice(self, start: int, stop: int) -> memoryview:
        """The bytes of rows ``start`` to ``stop`` (exclusive)."""
        first = int(self.ends[start - 1]) if start else 0
        last = len(self._data) if stop == self._rows else (int(self.ends[stop - 1]) if stop else 0)
        return self._data[first:last]

    def within(self, start: int, size: float) -> int:
        """The row after the last of those from ``start`` that end within ``size`` bytes."""
        first = int(self.ends[start - 1]) if start else 0
        return int(np.searchsorted(self.ends, first + size, side="right"))


@dataclass(frozen=True)
class Piece:
    """Rows up to ``stop`` (exclusive): their bytes as encoded and as they go into the file."""

    stop: int
    raw: memoryview
    packed: bytes | memoryview


class Filler:
    """Finds the next piece for a file that may hold ``total`` bytes.

    Without compression a piece is cut exactly. With it the packed size is known only afterwards, so
    pieces are predicted from the ratio seen so far: half of what is left at a time, so that a wrong
    guess costs a small piece and not a file.
    """

    def __init__(self, pack: Pack, *, total: int, compresses: bool) -> None:
        self._pack = pack
        self._total = total
        self._compresses = compresses
        self._ratio = 1.0

    def next(self, rows: EncodedRows, start: int, stop: int, *, room: int, skip: int = 0, begun: bool) -> Piece | None:
        """The next piece of rows ``start`` to ``stop`` for ``room`` bytes; none if the file is full.

        Args:
            rows: The encoded rows.
            start: The first row to take.
            stop: The row not to go past.
            room: Bytes left in the file.
            skip: Bytes of the first row to leave out (a separator before the first row of a file).
            begun: Whether the file has a row already; the last few bytes of such a file are not fought for.
        """
        if room <= 0 or (begun and self._compresses and room < self._total // 64):
            return None
        whole = rows.slice(start, stop)[skip:]
        count = stop - start if len(whole) <= self._likely(room) else self._predict(rows, start, stop, room, skip)
        while count > 0:
            raw = rows.slice(start, start + count)[skip:]
            piece = self._piece(start + count, raw)
            if len(piece.packed) <= room:
                return piece
            fitting = int(count * room / len(piece.packed) * 0.97)
            count = min(count - 1, max(fitting, 1))
        return None

    def _piece(self, stop: int, raw: memoryview) -> Piece:
        packed = self._pack(raw)
        self._ratio = max(len(raw), 1) / max(len(packed), 1)
        return Piece(stop, raw, packed)

    def _likely(self, room: int) -> int:
        # Deflate grows what it cannot shrink, by less than this (tried: 0.1 %). A piece is weighed all the same.
        return room - room // 64 - 256 if self._compresses else room

    def _predict(self, rows: EncodedRows, start: int, stop: int, room: int, skip: int) -> int:
        size = float(room + skip)
        if self._compresses:
            share = room if room < self._total // 16 else room // 2
            size = share * self._ratio * 0.95
        count = min(rows.within(start, size), stop) - start
        # Compressed, one row may fit although it does not as text; exact lengths need no try.
        return max(count, 1) if self._compresses else count


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
