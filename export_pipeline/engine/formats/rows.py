"""Encoded rows of a text format, and how many of them fit into what is left of a file.

What belongs here: the buffer of whole encoded rows and the search for the largest piece that fits.
What does not: what a row looks like (the formats), and how bytes are framed in a file (text_file, xlsx).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import numpy.typing as npt
import polars as pl

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
