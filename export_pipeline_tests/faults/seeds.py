"""Where the random moments of the fault suite come from.

Every test that draws gets the fixture ``chance``. Its seed is new each time, stands in the summary of the test run, and
``EXPORT_FAULT_SEED`` sets it: the same seed draws the same faults in the same order. (When they strike also depends on
how fast the machine is.)
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable

import pytest

VARIABLE = "EXPORT_FAULT_SEED"
NOTE = "note"

Note = Callable[[str], None]


@pytest.fixture
def note(request: pytest.FixtureRequest) -> Note:
    """Say something of a test in the summary of the test run, under the tally."""
    return lambda text: request.node.user_properties.append((NOTE, text))


@pytest.fixture
def chance(note: Note) -> random.Random:
    """A generator of its own for the test."""
    seed = int(os.environ.get(VARIABLE) or secrets.randbelow(2**32))
    note(f"{VARIABLE}={seed}")
    print(f"{VARIABLE}={seed}")
    return random.Random(seed)
