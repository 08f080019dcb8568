"""Whole columns of made-up values, each a function of the seed and the row's number alone.

A value never depends on the rows before it, so any cut into chunks gives the same rows: there is no
generator state, only a hash (splitmix64) of the row's number and the column's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Bits: TypeAlias = npt.NDArray[np.uint64]
Integers: TypeAlias = npt.NDArray[np.int64]
Mask: TypeAlias = npt.NDArray[np.bool_]
PINNED_ROWS = 60
"""The first rows hold every nasty value in order, whatever the seed."""
NASTY_RATE = 0.01
"""The share of the other rows of a column that hold a nasty value."""
LARGE_RATE = 1 / 50_000
"""The share of rows that hold a very large value, which weighs as much as a hundred others."""
_HYPHENS = (8, 13, 18, 23)
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8)


@dataclass(frozen=True)
class Rows:
    """Rows ``start`` to ``stop`` (from 0) of a table made with a seed."""

    table: str
    seed: int
    start: int
    stop: int

    @property
    def index(self) -> Integers:
        """The rows' numbers."""
        return np.arange(self.start, self.stop, dtype=np.int64)

    def bits(self, name: str) -> Bits:
        """64 random bits a row; every name gives others."""
        return self.at(name, self.index)

    def at(self, name: str, index: Integers) -> Bits:
        """The same for rows given by number, which may repeat."""
        key = np.uint64(_key(self.seed, self.table, name))
        mixed = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + key
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))

    def below(self, name: str, limit: int) -> Integers:
        """Whole numbers from 0 to ``limit - 1``."""
        return (self.bits(name) % np.uint64(limit)).astype(np.int64)

    def unit(self, name: str) -> npt.NDArray[np.float64]:
        """Numbers from 0 to 1, without 1."""
        return (self.bits(name) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def chance(self, name: str, rate: float) -> Mask:
        """True for a share of the rows."""
        return self.unit(name) < rate

    def pick(self, name: str, pool: Sequence[Any] | pa.Array) -> pa.Array:
        """One of the pool's values a row."""
        values = pool if isinstance(pool, pa.Array) else text_pool(tuple(pool))
        return values.take(pa.array(self.below(name, len(values))))

    def sparse(self, name: str, values: pa.Array, *, null: float, empty: float = 0.0) -> pa.Array:
        """The values with a share of nulls and, for texts, a share of empty ones."""
        chance = self.unit(f"{name}?")
        if empty:
            values = pc.if_else(pa.array(chance > 1 - empty), "", values)
        return pc.if_else(pa.array(chance < null), pa.scalar(None, values.type), values)

    def uuids(self, name: str) -> pa.Array:
        """Random UUIDs (version 4) as text."""
        return uuid_texts(self.bits(f"{name}/high"), self.bits(f"{name}/low"))

    def mix(self, name: str, values: pa.Array, nasty: pa.Array) -> pa.Array:
        """The values with nasty ones among them: the first rows by turns, later ones at ``NASTY_RATE``."""
        index = self.index
        pinned = index < PINNED_ROWS
        chosen = np.where(pinned, index % len(nasty), self.below(f"{name}/nasty", len(nasty)))
        mask = pinned | self.chance(f"{name}/nasty?", NASTY_RATE)
        return pc.if_else(pa.array(mask), nasty.take(pa.array(chosen)), values)

    def plant(self, name: str, values: pa.Array, value: str) -> pa.Array:
        """The values with a large one among them: in the last of the first rows, later at ``LARGE_RATE``."""
        index = self.index
        mask = (index == PINNED_ROWS - 1) | ((index >= PINNED_ROWS) & self.chance(f"{name}/large?", LARGE_RATE))
        # Not if_else: it would reserve room for the large value in every row.
        return pc.replace_with_mask(values, pa.array(mask), pa.array([value] * int(mask.sum()), pa.string()))


def uuid_texts(high: Bits, low: Bits) -> pa.Array:
    """UUIDs (version 4, lower case) of 128 bits each."""
    raw = np.empty((len(high), 2), dtype=">u8")
    raw[:, 0], raw[:, 1] = high, low
    octets = raw.view(np.uint8).reshape(-1, 16)
    octets[:, 6] = (octets[:, 6] & 0x0F) | 0x40
    octets[:, 8] = (octets[:, 8] & 0x3F) | 0x80
    digits = np.empty((len(high), 32), dtype=np.uint8)
    digits[:, 0::2], digits[:, 1::2] = _HEX[octets >> 4], _HEX[octets & 0x0F]
    text = np.full((len(high), 36), ord("-"), dtype=np.uint8)
    text[:, [at for at in range(36) if at not in _HYPHENS]] = digits
    offsets = np.arange(len(high) + 1, dtype=np.int32) * 36
    return pa.StringArray.from_buffers(len(high), pa.py_buffer(offsets), pa.py_buffer(text))


@cache
def text_pool(values: tuple[str | None, ...]) -> pa.Array:
    """A pool of texts to pick from."""
    return pa.array(values, pa.string())


def numbers_as_text(values: Integers, *, width: int = 0) -> pa.Array:
    """Whole numbers as text, with leading zeros up to ``width``."""
    text = pc.cast(pa.array(values), pa.string())
    return pc.utf8_lpad(text, width=width, padding="0") if width else text


def joined(*parts: pa.Array | str) -> pa.Array:
    """Texts end to end; null where any part is."""
    return pc.binary_join_element_wise(*parts, "")


def microseconds(instants: Sequence[str]) -> Integers:
    """ISO instants in UTC as microseconds since 1970."""
    return np.array(instants, dtype="datetime64[us]").astype(np.int64)


def timestamps(values: Integers, *, null: Mask | None = None) -> pa.Array:
    """Microseconds since 1970 as instants."""
    return pa.array(values, mask=null).cast(pa.timestamp("us", tz="UTC"))


def _key(seed: int, table: str, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{table}/{name}".encode(), digest_size=8).digest(), "big")
