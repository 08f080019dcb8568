"""The five organizations of the demo host application.

What belongs here: who they are, their share of the data, and the instants at which their clocks are
moved. What does not: the product's own ``organizations`` table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


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
