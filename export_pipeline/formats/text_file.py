"""Text formats: encoded rows between a head and a tail, plain or as one gzip member, never above a byte ceiling."""

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
from export_pipeline.formats.base import MEDIA_TYPES, FormatOptions
from export_pipeline.formats.columns import check_time_zone
from export_pipeline.timing import Timer

RowEnds = npt.NDArray[np.int64]


class EncodedRows:
    """Whole rows one after another in one buffer; ``find_ends`` runs only if a file must be cut."""

    def __init__(self, data: memoryview, rows: int, find_ends: Callable[[], RowEnds]) -> None:
        self._data = data
        self._rows = rows
        self._find_ends = find_ends

    @classmethod
    def from_series(cls, rows: pl.Series) -> Self:
        """Of a text series with one encoded row a value, without a copy of its Arrow buffers."""
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
        last = len(self._data) if stop == self._rows else self._offset(stop)
        return self._data[self._offset(start) : last]

    def within(self, start: int, size: float) -> int:
        """The row after the last of those from ``start`` that end within ``size`` bytes."""
        return int(np.searchsorted(self.ends, self._offset(start) + size, side="right"))

    def _offset(self, row: int) -> int:
        return int(self.ends[row - 1]) if row else 0


@dataclass(frozen=True)
class Piece:
    """Rows up to ``stop`` (exclusive): their bytes as encoded and as they go into the file."""

    stop: int
    raw: memoryview
    packed: bytes | memoryview


class Filler:
    """Finds the next piece for a file that may hold ``total`` bytes.

    Without compression a piece is cut exactly. With it the packed size is known only afterwards. So the size is
    predicted from the ratio so far, for half of the remaining room at a time: a wrong guess costs a small piece, not a
    file.
    """

    def __init__(self, total: int, packing: Timer | None) -> None:
        """``packing`` measures the compression; None: there is none."""
        self._total = total
        self._packing = packing
        self._ratio = 1.0

    def next(self, rows: EncodedRows, start: int, stop: int, *, room: int, skip: int = 0, begun: bool) -> Piece | None:
        """The next piece of rows ``start`` to ``stop`` (exclusive) for ``room`` bytes; None if the file is full.

        ``skip`` bytes of the first row are left out (a separator before the first row of a file). A file that has
        ``begun`` with a row may stay a few bytes below its ceiling.
        """
        if room <= 0 or (begun and self._packing and room < self._total // 64):
            return None
        whole = rows.slice(start, stop)[skip:]
        # Deflate enlarges what it cannot shrink, by less than this (measured: 0.1 %). Each piece is measured anyway.
        likely = room - room // 64 - 256 if self._packing else room
        count = stop - start if len(whole) <= likely else self._predict(rows, start, stop, room, skip)
        while count > 0:
            raw = rows.slice(start, start + count)[skip:]
            packed = self._packed(raw)
            self._ratio = max(len(raw), 1) / max(len(packed), 1)
            if len(packed) <= room:
                return Piece(start + count, raw, packed)
            fitting = int(count * room / len(packed) * 0.97)
            count = min(count - 1, max(fitting, 1))
        return None

    def _packed(self, raw: memoryview) -> bytes | memoryview:
        if self._packing is None:
            return raw
        with self._packing:
            return deflate.pack(raw)

    def _predict(self, rows: EncodedRows, start: int, stop: int, room: int, skip: int) -> int:
        size = float(room + skip)
        if self._packing:
            share = room if room < self._total // 16 else room // 2
            size = share * self._ratio * 0.95
        count = min(rows.within(start, size), stop) - start
        # Compressed, one row may fit although it does not as text; exact lengths need no try.
        return max(count, 1) if self._packing else count


@dataclass(frozen=True)
class Frame:
    """What surrounds the rows of a text file."""

    head: bytes = b""
    tail: bytes = b""
    empty_tail: bytes = b""
    """The tail of a file without rows."""
    first_skip: int = 0
    """Bytes (a separator) that the first row of a file leaves out."""


class TextFormat:
    """A text format with its options: all of ``FileFormat`` but the encoding."""

    def __init__(self, name: str, options: FormatOptions, frame: Frame) -> None:
        check_time_zone(options.time_zone)
        if options.compression not in {"none", "gzip"}:
            message = f"compression {options.compression!r} is not known; use 'none' or 'gzip'"
            raise ExportFailure(FailureCode.UNKNOWN_COMPRESSION, message, field="compression")
        self._name = name
        self._options = options
        self._gzip = options.compression == "gzip"
        self._frame = frame
        self.extension = f"{name}.gz" if self._gzip else name
        self.media_type = "application/gzip" if self._gzip else MEDIA_TYPES[name]
        self.packing = Timer()

    def open(self, sink: BinaryIO) -> TextFile:
        """Begin a file with its head."""
        packing = self.packing if self._gzip else None
        return TextFile(sink, self._frame, name=self._name, max_bytes=self._options.max_bytes, packing=packing)


class TextFile:
    """One file being written; gzipped if there is a timer for it."""

    def __init__(self, sink: BinaryIO, frame: Frame, *, name: str, max_bytes: int, packing: Timer | None) -> None:
        self._sink = sink
        self._frame = frame
        self._gzip = packing is not None
        self._checksum = deflate.Checksum()
        self._filler = Filler(max_bytes, packing)
        self._left = max_bytes - max(len(self._closing(tail)) for tail in (frame.tail, frame.empty_tail))
        self._begun = False
        opening = deflate.GZIP_HEADER + _packed(frame.head) if self._gzip else frame.head
        if len(opening) > self._left:
            raise too_small(name, max_bytes, max_bytes - self._left + len(opening))
        self._checksum.add(frame.head)
        self._put(opening)

    def write(self, encoded: EncodedRows, start: int) -> int:
        """Take as many rows as fit (see ``FileWriter``)."""
        at, stop = start, len(encoded)
        while at < stop:
            skip = 0 if self._begun else self._frame.first_skip
            piece = self._filler.next(encoded, at, stop, room=self._left, skip=skip, begun=self._begun)
            if piece is None:
                break
            if self._gzip:
                self._checksum.add(piece.raw)
            self._put(piece.packed)
            self._begun = True
            at = piece.stop
        return at - start

    def close(self) -> None:
        """Write the tail."""
        tail = self._frame.tail if self._begun else self._frame.empty_tail
        self._checksum.add(tail)
        self._sink.write(self._closing(tail))

    def _closing(self, tail: bytes) -> bytes:
        return _packed(tail) + deflate.END + self._checksum.gzip_trailer() if self._gzip else tail

    def _put(self, data: bytes | memoryview) -> None:
        self._sink.write(data)
        self._left -= len(data)


def _packed(data: bytes) -> bytes:
    return deflate.pack(data) if data else b""


def too_small(format_name: str, max_bytes: int, needed: int) -> ExportFailure:
    """The failure of a ceiling below the size of a file without rows."""
    return ExportFailure(
        FailureCode.FILE_SIZE_TOO_SMALL,
        f"a {format_name} file without rows needs {needed} bytes, more than the limit of {max_bytes}; raise the limit",
        field="max_file_size_mb",
    )
