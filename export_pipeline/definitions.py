"""The one assembly: what Dagster loads.

What belongs here: putting job, sensors and resources together. What does not: any of them.
"""

from __future__ import annotations

import dagster as dg

from export_pipeline.catalog.loader import load_catalog
from export_pipeline.check.environment import warn_of_unknown_variables
from export_pipeline.delivery.mail import default_sender, open_mail_provider
from export_pipeline.orchestration.alerts import alerts_sensor
from export_pipeline.orchestration.assets import dataset_assets
from export_pipeline.orchestration.executors import executor_of, io_manager_of
from export_pipeline.orchestration.janitor import janitor, janitor_schedule
from export_pipeline.orchestration.job import export_job, notify_job
from export_pipeline.orchestration.recurring import recurring_exports
from export_pipeline.orchestration.resources import ExportResource, s3_resource
from export_pipeline.orchestration.sensors import export_cancellations, export_reconciler, export_requests
from export_pipeline.orchestration.webhooks import export_webhooks, webhook_job
from export_pipeline.settings import Settings


def build_definitions() -> dg.Definitions:
    """Everything that a code location needs, for the settings in the environment.

    Raises:
        SettingsError: a setting is wrong; the code location does not load, and says which.
        CatalogError: a dataset's declaration is wrong.
    """
    settings = Settings.from_environment()
    warn_of_unknown_variables()
    default_sender(settings)
    if settings.sends_mail:
        open_mail_provider(settings)
    catalog = load_catalog(settings.catalog)
    return dg.Definitions(
        assets=dataset_assets(catalog),
        jobs=[export_job, notify_job, webhook_job, janitor],
        schedules=[janitor_schedule],
        sensors=[
            export_requests,
            export_cancellations,
            export_reconciler,
            recurring_exports,
            export_webhooks,
            alerts_sensor(running=settings.alerts),
        ],
        resources={"exports": ExportResource(s3=s3_resource(settings)), **io_manager_of(settings)},
        executor=executor_of(settings),
    )


defs = build_definitions()
