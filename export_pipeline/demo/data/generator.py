"""The demo's organizations, and whole columns of made-up values.

Each value is a hash (splitmix64) of the seed, the column's name and the row's number. There is no generator state, so
any split into chunks gives the same rows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
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
CHUNK_ROWS = 65_536
FIRST_ROWS = 60
"""The first rows belong to the first organization, so that a small data set has rows of it."""
_HYPHENS = (8, 13, 18, 23)


@dataclass(frozen=True)
class Rows:
    """Rows ``start`` to ``stop`` (from 0, ``stop`` excluded) of a table made with a seed."""

    table: str
    seed: int
    start: int
    stop: int

    @classmethod
    def chunks(cls, table: str, rows: int, seed: int, chunk_rows: int) -> Iterator[Rows]:
        """The first ``rows`` rows of a table, ``chunk_rows`` at a time."""
        return (cls(table, seed, start, min(start + chunk_rows, rows)) for start in range(0, rows, chunk_rows))

    @property
    def index(self) -> Integers:
        """The rows' numbers."""
        return np.arange(self.start, self.stop, dtype=np.int64)

    def bits(self, name: str) -> Bits:
        """64 random bits a row, different for each name."""
        return self.at(name, self.index)

    def at(self, name: str, index: Integers) -> Bits:
        """As ``bits``, for rows given by number; numbers may repeat."""
        digest = hashlib.blake2b(f"{self.seed}/{self.table}/{name}".encode(), digest_size=8).digest()
        mixed = index.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(int.from_bytes(digest, "big"))
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

    def pick(self, name: str, pool: Sequence[str]) -> pa.Array:
        """One of the pool's texts a row."""
        return text_pool(tuple(pool)).take(pa.array(self.below(name, len(pool))))

    def sparse(self, name: str, values: pa.Array, *, null: float, empty: float = 0.0) -> pa.Array:
        """The values with a share of nulls and, for texts, a share of empty ones."""
        chance = self.unit(f"{name}?")
        if empty:
            values = pc.if_else(pa.array(chance > 1 - empty), "", values)
        return pc.if_else(pa.array(chance < null), pa.scalar(None, values.type), values)

    def uuids(self, name: str) -> pa.Array:
        """Random UUIDs (version 4) as text, in lower case."""
        raw = np.empty((self.stop - self.start, 2), dtype=">u8")
        raw[:, 0], raw[:, 1] = self.bits(f"{name}/high"), self.bits(f"{name}/low")
        octets = raw.view(np.uint8).reshape(-1, 16)
        octets[:, 6] = (octets[:, 6] & 0x0F) | 0x40
        octets[:, 8] = (octets[:, 8] & 0x3F) | 0x80
        digits = np.frombuffer(octets.tobytes().hex().encode(), dtype=np.uint8).reshape(-1, 32)
        text = np.full((len(raw), 36), ord("-"), dtype=np.uint8)
        text[:, [at for at in range(36) if at not in _HYPHENS]] = digits
        offsets = np.arange(len(raw) + 1, dtype=np.int32) * 36
        return pa.StringArray.from_buffers(len(raw), pa.py_buffer(offsets), pa.py_buffer(text))


@cache
def text_pool(values: tuple[str | None, ...]) -> pa.Array:
    """The texts as an array to take from."""
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


def canonical_json(value: Any) -> str:
    """JSON as PostgreSQL prints ``jsonb``, so that a row is the same on every database."""
    return json.dumps(_ordered(value), ensure_ascii=False, separators=(", ", ": "))


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: (len(key.encode()), key.encode()))
        return {key: _ordered(value[key]) for key in keys}
    return [_ordered(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Organization:
    """A tenant: id (UUID text), time zone (IANA), and its share of all rows (0 to 1)."""

    id: str
    name: str
    time_zone: str
    share: float


ORGANIZATIONS: tuple[Organization, ...] = (
    Organization("6f0c1a52-3a7e-4c0b-9d51-0b6a2f4e7a01", "Café São Jorge", "America/Sao_Paulo", 0.60),
    Organization("1d9e8b34-52c6-4f7d-8a10-7c3b9e5d2f02", "Taquería «El Ñandú»", "America/Mexico_City", 0.20),
    Organization("c84f2e6b-0d95-4a3e-b7c2-5e1f8a6d4c03", 'O\'Brien & Sons, "Hardware"', "America/New_York", 0.10),
    Organization("9a3b7d1c-e4f8-4265-a6d9-2b8c5f0e1d04", "Librería Quijote", "Europe/Madrid", 0.07),
    Organization("52e7c9f0-8b1d-4e6a-93f4-d0a7b2c6e805", "चाय घर Tea House", "Asia/Kolkata", 0.03),
)
_SHARES = np.cumsum([organization.share for organization in ORGANIZATIONS])
_IDS = tuple(organization.id for organization in ORGANIZATIONS)
DAY = 86_400_000_000
"""Microseconds."""
_FIRST, _LAST = (int(instant) for instant in microseconds(["2018-01-01", "2025-10-01"]))


def organization_numbers(rows: Rows) -> Integers:
    """The number of each row's organization in ``ORGANIZATIONS``, by their shares."""
    drawn = np.minimum(np.searchsorted(_SHARES, rows.unit("organization"), side="right"), len(_IDS) - 1)
    return np.where(rows.index < FIRST_ROWS, 0, drawn).astype(np.int64)


def organization_ids(numbers: Integers) -> pa.Array:
    """The ids of organizations given by number."""
    return text_pool(_IDS).take(pa.array(numbers))


def created(rows: Rows) -> Integers:
    """When rows were made, in microseconds since 1970: 2018 to 2025, half of them at whole seconds.

    Many applications store whole seconds; an ISO time then has no fraction.
    """
    values = _FIRST + (rows.bits("created_at") % np.uint64(_LAST - _FIRST)).astype(np.int64)
    return np.where(rows.chance("created_at/whole", 0.5), values - values % 1_000_000, values)


def updated(rows: Rows, created_at: Integers) -> Integers:
    """When rows were last changed: up to 400 days after they were made."""
    return created_at + (rows.bits("updated_at") % np.uint64(400 * DAY)).astype(np.int64)
