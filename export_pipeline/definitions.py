"""The code location: what Dagster loads."""

from __future__ import annotations

from typing import Any

import dagster as dg

from export_pipeline.catalog.loader import CatalogError
from export_pipeline.check.environment import warn_of_unknown_variables
from export_pipeline.failures import ExportFailure
from export_pipeline.messaging.providers import default_sender, open_mail_provider
from export_pipeline.orchestration.execution import io_manager_of
from export_pipeline.orchestration.jobs import (
    executor_of,
    export_job,
    janitor,
    janitor_schedule,
    notify_job,
    webhook_job,
)
from export_pipeline.orchestration.metadata import dataset_assets
from export_pipeline.orchestration.resources import S3, ExportResource, load_catalog_or_last_good
from export_pipeline.orchestration.sensors.alerts import alerts_sensor, always_broken, export_installation
from export_pipeline.orchestration.sensors.cancellations import export_cancellations
from export_pipeline.orchestration.sensors.due import export_webhooks, recurring_exports
from export_pipeline.orchestration.sensors.reconciler import export_reconciler
from export_pipeline.orchestration.sensors.requests import export_requests
from export_pipeline.settings import Settings, SettingsError


def build_definitions() -> dg.Definitions:
    """The code location for the settings in the environment.

    Raises:
        SettingsError: a setting is wrong.
        ImportError: a setting needs an extra that is not installed.
    """
    settings = Settings.from_environment()
    warn_of_unknown_variables()
    default_sender(settings)
    if settings.sends_mail:
        open_mail_provider(settings)
    executor = executor_of(settings)
    exports = ExportResource(s3=S3(endpoint_url=settings.s3_endpoint_url or None))
    resources: dict[str, Any] = {"exports": exports, **io_manager_of(settings, exports)}
    alerts = alerts_sensor(running=settings.alerts)
    try:
        catalog = load_catalog_or_last_good(settings).catalog
    except (CatalogError, ExportFailure):  # the sensors report it
        return dg.Definitions(sensors=[export_installation, alerts], resources=resources)
    return dg.Definitions(
        assets=dataset_assets(catalog),
        # Only this job gets the executor: in a project that merges these definitions all other jobs keep theirs.
        jobs=[export_job.with_executor_def(executor), notify_job, webhook_job, janitor],
        schedules=[janitor_schedule],
        sensors=[
            export_requests,
            export_cancellations,
            export_reconciler,
            recurring_exports,
            export_webhooks,
            export_installation,
            alerts,
        ],
        resources=resources,
    )


def load_definitions() -> dg.Definitions:
    """``build_definitions``, or with wrong settings a single sensor whose failed ticks say what is wrong.

    Dagster shows no error for a code location that does not load: the daemon logs a traceback, and no sensor ticks.
    """
    try:
        return build_definitions()
    except SettingsError as error:
        problem = str(error)
    except ImportError as error:
        problem = f"The package {error.name} is not installed: install the extra of export-pipeline that brings it."
    return dg.Definitions(sensors=[always_broken(problem)])


defs = load_definitions()
