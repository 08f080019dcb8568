"""The Celery app of a worker: ``celery -A export_pipeline.orchestration.celery_app worker -n NAME``.

A step is acknowledged when it begins, so that no step runs twice at once: two snapshots could mix in one export. What
a killed worker had begun is lost, and the reconciler gives the request a new attempt.
"""

from __future__ import annotations

import os

from dagster_celery.executor import CeleryExecutor
from dagster_celery.make_app import make_app
from dagster_celery.tasks import create_task

from export_pipeline.orchestration.jobs import celery_config
from export_pipeline.settings import Settings

_config = celery_config(Settings.from_environment())
app = make_app(  # type: ignore[no-untyped-call]
    CeleryExecutor.for_cli(  # type: ignore[no-untyped-call]
        broker=os.environ[_config["broker"]["env"]],
        backend=os.environ[_config["backend"]["env"]],
        include=["export_pipeline.definitions"],  # imported before the worker forks its children
        config_source=_config["config_source"],
    ).app_args()
)
execute_plan = create_task(app)  # type: ignore[no-untyped-call]
