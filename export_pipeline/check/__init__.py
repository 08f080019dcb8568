"""Does this installation work? Each part is tried with the product's own code, and every problem is named.

Nothing is left behind, and no message holds a credential or a value of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial


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


ok = partial(Finding, State.OK)
warning = partial(Finding, State.WARNING)
wrong = partial(Finding, State.WRONG)
