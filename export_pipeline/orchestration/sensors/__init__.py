"""The Dagster sensors, and what they share: intervals, bounds, and how one row's failure is kept from the others."""

from collections.abc import Callable
from typing import Any, ParamSpec

import dagster as dg
import sqlalchemy as sa

from export_pipeline.database.engine import why_unavailable

P = ParamSpec("P")
INTERVAL_SECONDS = 4
"""Not 5: the daemon's loop takes 5 s, and it skips a sensor of 5 s every other time."""
SLOW_INTERVAL_SECONDS = 14
ROWS_PER_TICK = 50
"""Each run key costs the daemon a look-up: 50 keep a tick short, and the next tick takes the next 50."""
RECONCILE_SECONDS = 30.0
"""The daemon gives a tick 60 s; what is left is done at the next tick."""


def sensor(
    *, job_name: str | None = None, seconds: int = INTERVAL_SECONDS, running: bool = True
) -> Callable[[Callable[..., Any]], dg.SensorDefinition]:
    """Decorate a sensor that ticks every ``seconds``. Its docstring is the UI's description, for operators."""
    status = dg.DefaultSensorStatus.RUNNING if running else dg.DefaultSensorStatus.STOPPED

    def decorate(evaluate: Callable[..., Any]) -> dg.SensorDefinition:
        text = " ".join((evaluate.__doc__ or "").split())  # the UI shows it as plain text
        declared = dg.sensor(
            job_name=job_name, minimum_interval_seconds=seconds, default_status=status, description=text
        )
        return declared(evaluate)

    return decorate


def done(step: Callable[P, object], *arguments: P.args, **options: P.kwargs) -> bool:
    """Do one row's work; whether it succeeded. The tick names the rows that failed, and the next tick tries again."""
    try:
        step(*arguments, **options)
    except Exception:  # noqa: BLE001 - one row's error must not stop the others
        return False
    return True


def skipped(error: sa.exc.DBAPIError) -> dg.SkipReason:
    """The tick's text when the request database is unavailable; raises the error if it means anything else."""
    why = why_unavailable(error)
    if why is None:
        raise error
    return dg.SkipReason(f"{why} Trying again.")


def summary(number: int, failed: list[str], what: str) -> str:
    """The tick's text: how many rows it handled, and the uids of those that failed."""
    return f"{number} {what}." + (f" Not done, to be tried again: {', '.join(failed)}" if failed else "")
