"""Which of Dagster's executors runs the steps of an export, and where the steps leave what they hand on.

What belongs here: the choice, from the settings. What does not: how runs are launched (``dagster.yaml``), what a
Celery worker is (``celery_app``).

The extras ``celery`` and ``k8s`` bring the executors' packages; they are imported when they are chosen.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import dagster as dg

from export_pipeline.orchestration.resources import ExportResource
from export_pipeline.settings import Settings

OUTPUTS = "runs"
"""Where step outputs are, below the staging URL. No request is named so: it is no uid."""


THREADLESS_MODULES = ("dagster", "dagster_aws.s3", "boto3", "sqlalchemy", "pydantic_settings")
"""What a step's process is forked with. Not our own definitions: polars and Arrow start threads as they are imported,
and whatever such a thread held would stay locked in the fork."""


def executor_of(settings: Settings) -> dg.ExecutorDefinition:
    """The executor of the export job."""
    match settings.executor:
        case "in_process":
            return dg.in_process_executor
        case "multiprocess":
            start = {"forkserver": {"preload_modules": list(THREADLESS_MODULES)}}
            config = {"max_concurrent": settings.executor_concurrency, "start_method": start}
            return dg.multiprocess_executor.configured(config, name="multiprocess")
        case "celery":
            from dagster_celery import celery_executor

            return celery_executor.configured(celery_config(settings), name="celery")
        case "k8s":
            from dagster_k8s import k8s_job_executor

            return k8s_job_executor.configured({"max_concurrent": settings.executor_concurrency}, name="k8s")


def celery_config(settings: Settings) -> dict[str, Any]:
    """The Celery app, as Dagster's executor is told of it. The URLs hold passwords: it gets the variables' names."""
    result = "EXPORT_CELERY_RESULT_URL" if settings.celery_result_url.get_secret_value() else "EXPORT_CELERY_BROKER_URL"
    return {
        "broker": {"env": "EXPORT_CELERY_BROKER_URL"},
        "backend": {"env": result},
        "config_source": {
            # A worker that holds back a step it has no process for, and dies, would take it along.
            "worker_prefetch_multiplier": 1,
            "worker_disable_prefetch": True,
            "broker_connection_retry_on_startup": True,
        },
    }


def io_manager_of(settings: Settings, exports: ExportResource) -> dict[str, Any]:
    """The IO manager, as a resource: on S3 where staging is, else Dagster's own on the disk of its instance."""
    parts = urlsplit(settings.staging_url)
    if parts.scheme != "s3":
        return {}
    from export_pipeline.orchestration.step_outputs import StepOutputs

    prefix = "/".join(part for part in (parts.path.strip("/"), OUTPUTS) if part)
    return {
        "io_manager": StepOutputs(exports=exports, s3_resource=exports.s3, s3_bucket=parts.netloc, s3_prefix=prefix)
    }
