"""Does this installation work? Each part is tried with the product's own code, and every problem is named.

Nothing is left behind, and no message holds a credential or a value of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """The result of a check."""

    OK = "ok"
    WARNING = "warning"
    """Exports work, but something may be missing or unexpected."""
    WRONG = "wrong"
    """Some or all exports would fail."""


@dataclass(frozen=True)
class Finding:
    """A subject, its state, and what to do about it."""

    state: State
    subject: str
    text: str


def ok(subject: str, text: str) -> Finding:
    """It works."""
    return Finding(State.OK, subject, text)


def warning(subject: str, text: str) -> Finding:
    """It works, with a reservation."""
    return Finding(State.WARNING, subject, text)


def wrong(subject: str, text: str) -> Finding:
    """It does not work."""
    return Finding(State.WRONG, subject, text)
