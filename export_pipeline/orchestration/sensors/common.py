"""Rows that lost their run, and mails that their run left: asking Dagster, and doing what was decided."""

from collections.abc import Callable
from typing import ParamSpec

import dagster as dg
import sqlalchemy as sa

from export_pipeline.database.engine import why_unavailable

P = ParamSpec("P")


def done(step: Callable[P, object], *arguments: P.args, **options: P.kwargs) -> bool:
    """Do one row's work; what goes wrong with one must not keep the others from theirs."""
    try:
        step(*arguments, **options)
    except Exception:  # noqa: BLE001 - told by the tick, tried again at the next
        return False
    return True


ROWS_PER_TICK = 50
"""A run key costs the daemon a look-up; 50 keep a tick short, and the next tick takes the next 50."""
INTERVAL_SECONDS = 4
RECONCILE_INTERVAL_SECONDS = 14
RECONCILE_SECONDS = 30.0
"""The daemon gives a tick 60 s; what is left is done at the next."""


def skipped(error: sa.exc.DBAPIError) -> dg.SkipReason:
    """The tick says why the request database did not serve it."""
    why = why_unavailable(error)
    if why is None:
        raise error
    return dg.SkipReason(f"{why} Trying again.")


def summary(number: int, failed: list[str], what: str) -> str:
    """One line for the tick: how many rows it handled, and the uids of those that failed."""
    return f"{number} {what}." + (f" Not done, to be tried again: {', '.join(failed)}" if failed else "")
