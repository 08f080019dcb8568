"""What all tables of the demo share: whose a row is, and when it was made.

What belongs here: organizations and instants of rows. What does not: the columns of one table.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from export_pipeline.demo import nasty
from export_pipeline.demo.columns import NASTY_RATE, PINNED_ROWS, Integers, Rows, microseconds, text_pool
from export_pipeline.demo.organizations import ORGANIZATIONS

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
