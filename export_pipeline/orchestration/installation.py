"""The sensor that is red while the installation itself is broken: catalog, settings, request database.

A sensor is the one thing of ours that Dagster shows in red without a run. So whatever keeps all exports from their
work fails this sensor's ticks, with a text that says what to do; the others go on as far as they can.
"""

from __future__ import annotations

import dagster as dg
import sqlalchemy as sa

from export_pipeline.catalog.loader import CatalogError
from export_pipeline.database.engine import why_unavailable
from export_pipeline.failures import ExportFailure
from export_pipeline.orchestration import descriptions, last_good
from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.requests import health

NAME = "export_installation"
INTERVAL_SECONDS = 14


class InstallationBroken(Exception):
    """What is wrong with the installation, and what to do; no value of a setting."""


def problems(exports: ExportResource) -> list[str]:
    """What is wrong with the installation now; nothing if all is well."""
    return [*_catalog_problems(exports), *_database_problems(exports)]


def _catalog_problems(exports: ExportResource) -> list[str]:
    try:
        loaded = last_good.load(exports.settings, exports.staging)
        if loaded.problem is None:
            last_good.keep(exports.settings, loaded.catalog, exports.staging)
            return []
    except CatalogError as error:
        return [f"The catalog does not load, and no good one is kept: no export can start. Correct it.\n{error}"]
    except ExportFailure as failure:
        return [f"{failure.code}: {failure.message}"]
    return [f"The catalog does not load. Exports go on with the last good one. Correct it.\n{loaded.problem}"]


def _database_problems(exports: ExportResource) -> list[str]:
    """The tick is noted there: a database that cannot be written to is as bad as one that does not answer."""
    try:
        with exports.database.begin() as connection:
            health.note_tick(connection, NAME)
            outage = health.outage(connection)
    except sa.exc.DBAPIError as error:
        refused = f"The request database refused to be written to ({type(error.orig).__name__}): check its log."
        return [why_unavailable(error) or refused]
    return [] if outage.ok else [f"Exports wait, and go on by themselves when it answers: {outage.meaning}"]


@dg.sensor(
    name=NAME,
    minimum_interval_seconds=INTERVAL_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description=descriptions.EXPORT_INSTALLATION,
)
def export_installation(_context: dg.SensorEvaluationContext, exports: ExportResource) -> dg.SkipReason:
    """Red while something is wrong."""
    found = problems(exports)
    if found:
        raise InstallationBroken("\n\n".join(found))
    return dg.SkipReason("The settings, the catalog and the request database are in order.")


def always_broken(problem: str) -> dg.SensorDefinition:
    """The same sensor of a code location that could not be assembled: it can only say why."""

    @dg.sensor(
        name=NAME,
        minimum_interval_seconds=INTERVAL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=descriptions.EXPORT_INSTALLATION,
    )
    def broken(_context: dg.SensorEvaluationContext) -> dg.SkipReason:
        raise InstallationBroken(f"No export can start. Correct the settings, then restart.\n{problem}")

    return broken
