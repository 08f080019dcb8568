"""The five organizations of the demo host application."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from export_pipeline.demo.data import nasty
from export_pipeline.demo.data.generator import NASTY_RATE, PINNED_ROWS, Integers, Rows, microseconds, text_pool


@dataclass(frozen=True)
class Organization:
    """A tenant: id (UUID text), time zone (IANA), language, and its share of all rows (0 to 1)."""

    id: str
    name: str
    time_zone: str
    locale: Literal["en", "es", "pt"]
    share: float
    clock_changes: tuple[str, ...]
    """UTC instants (ISO 8601, no offset) at which its wall clock jumps."""


ORGANIZATIONS: tuple[Organization, ...] = (
    Organization(
        "6f0c1a52-3a7e-4c0b-9d51-0b6a2f4e7a01",
        "Café São Jorge",
        "America/Sao_Paulo",
        "pt",
        0.60,
        ("2018-11-04T03:00:00", "2019-02-17T02:00:00"),
    ),
    Organization(
        "1d9e8b34-52c6-4f7d-8a10-7c3b9e5d2f02",
        "Taquería «El Ñandú»",
        "America/Mexico_City",
        "es",
        0.20,
        ("2022-04-03T08:00:00", "2022-10-30T07:00:00"),
    ),
    Organization(
        "c84f2e6b-0d95-4a3e-b7c2-5e1f8a6d4c03",
        'O\'Brien & Sons, "Hardware"',
        "America/New_York",
        "en",
        0.10,
        ("2024-03-10T07:00:00", "2024-11-03T06:00:00"),
    ),
    Organization(
        "9a3b7d1c-e4f8-4265-a6d9-2b8c5f0e1d04",
        "Librería Quijote",
        "Europe/Madrid",
        "es",
        0.07,
        ("2024-03-31T01:00:00", "2024-10-27T01:00:00"),
    ),
    Organization(
        "52e7c9f0-8b1d-4e6a-93f4-d0a7b2c6e805",
        "चाय घर Tea House",
        "Asia/Kolkata",
        "en",
        0.03,
        # India's last change, and the first instant of a Kolkata day, which is another day in UTC.
        ("1945-10-14T17:30:00", "2024-03-30T18:30:00"),
    ),
)
# What all tables of the demo share: whose a row is, and when it was made.


_SHARES = np.cumsum([organization.share for organization in ORGANIZATIONS])
_IDS = tuple(organization.id for organization in ORGANIZATIONS)
_DAY = 86_400_000_000
_FIRST, _LAST = (int(instant) for instant in microseconds(["2018-01-01", "2025-10-01"]))
_BOTH_SIDES = (-3_600_000_001, -3_600_000_000, -1, 0, 1, 1_800_000_000, 3_599_999_999, 3_600_000_000)
AROUND_CLOCK_CHANGES = np.array(
    [
        [change + shift for change in microseconds(organization.clock_changes).tolist() for shift in _BOTH_SIDES]
        for organization in ORGANIZATIONS
    ],
    dtype=np.int64,
)
"""Instants (microseconds since 1970) on both sides of each organization's gaps and overlaps."""
PINNED_INSTANTS = np.concatenate([microseconds(nasty.TIMESTAMPS), AROUND_CLOCK_CHANGES[0]])
"""The instants of the first rows, by turns."""


def organization_numbers(rows: Rows) -> Integers:
    """The number of each row's organization in ``ORGANIZATIONS``; the first rows are the first one's."""
    drawn = np.minimum(np.searchsorted(_SHARES, rows.unit("organization"), side="right"), len(_IDS) - 1)
    return np.where(rows.index < PINNED_ROWS, 0, drawn).astype(np.int64)


def organization_ids(numbers: Integers) -> pa.Array:
    """The ids of organizations given by number."""
    return text_pool(_IDS).take(pa.array(numbers))


def created(rows: Rows, organizations: Integers) -> Integers:
    """When rows were made, in microseconds since 1970: a few years, and the nasty instants among them."""
    values = _FIRST + (rows.bits("created_at") % np.uint64(_LAST - _FIRST)).astype(np.int64)
    # Half of all hosts store whole seconds: then an ISO time has no fraction.
    values = np.where(rows.chance("created_at/whole", 0.5), values - values % 1_000_000, values)
    around = AROUND_CLOCK_CHANGES[organizations, rows.below("created_at/around", AROUND_CLOCK_CHANGES.shape[1])]
    values = np.where(rows.chance("created_at/nasty?", NASTY_RATE), around, values)
    pinned = PINNED_INSTANTS[rows.index % len(PINNED_INSTANTS)]
    return np.where(rows.index < PINNED_ROWS, pinned, values).astype(np.int64)


def updated(rows: Rows, created_at: Integers) -> Integers:
    """When rows were last changed; the first rows never were, because some are at the end of time."""
    later = created_at + (rows.bits("updated_at") % np.uint64(400 * _DAY)).astype(np.int64)
    return np.where(rows.index < PINNED_ROWS, created_at, later).astype(np.int64)
