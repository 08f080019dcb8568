"""What a check finds: one line about one thing."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    """How a thing was found."""

    OK = "ok"
    WARNING = "warning"
    """Exports work, but something may be missing or surprise."""
    WRONG = "wrong"
    """Exports, or some of them, would fail."""


@dataclass(frozen=True)
class Finding:
    """One thing, how it is, and what to do about it."""

    state: State
    subject: str
    text: str


def ok(subject: str, text: str) -> Finding:
    """It works."""
    return Finding(State.OK, subject, text)


def warning(subject: str, text: str) -> Finding:
    """It works, but."""
    return Finding(State.WARNING, subject, text)


def wrong(subject: str, text: str) -> Finding:
    """It does not work."""
    return Finding(State.WRONG, subject, text)
