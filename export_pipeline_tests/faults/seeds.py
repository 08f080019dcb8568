"""Where the random moments of the fault suite come from.

Every test that draws gets the fixture ``chance``. Its seed is new each time, stands in the summary of the test run, and
``EXPORT_FAULT_SEED`` sets it: the same seed draws the same faults in the same order. (When they strike also depends on
how fast the machine is.)
"""

from __future__ import annotations

import os
import random
import secrets

import pytest

VARIABLE = "EXPORT_FAULT_SEED"
PROPERTY = "seed"


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """A generator of its own for the test."""
    seed = int(os.environ.get(VARIABLE) or secrets.randbelow(2**32))
    request.node.user_properties.append((PROPERTY, seed))
    print(f"{VARIABLE}={seed}")  # noqa: T201 - beside a failure's traceback
    return random.Random(seed)
