"""Dagster resources: the doors to the database, the stores and the mail provider.

Settings come from the environment of the process that runs the step, not from Dagster config:
config is stored in snapshots and shown in the UI, and would carry the passwords there.
"""

from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import sqlalchemy as sa
from dagster_aws.s3 import S3Resource
from pydantic import PrivateAttr

from export_pipeline.catalog.loader import Catalog
from export_pipeline.database.engine import create_engine
from export_pipeline.messaging.message import MailProvider
from export_pipeline.messaging.providers import open_mail_provider
from export_pipeline.orchestration import last_good
from export_pipeline.requests.organizations import Organizations
from export_pipeline.settings import Settings
from export_pipeline.source.readers import Source, source_of
from export_pipeline.storage.s3_client import build_client
from export_pipeline.storage.staging import Staging
from export_pipeline.storage.store import Store, open_store


class S3(S3Resource):
    """dagster-aws' resource with the one client of the product; Dagster's IO manager for S3 takes no other."""

    def get_client(self) -> Any:
        """A client with the credentials of the environment."""
        return build_client(self.endpoint_url or "")


class ExportResource(dg.ConfigurableResource["ExportResource"]):
    """Everything an op of the export job works with; each part is opened when first asked for."""

    s3: dg.ResourceDependency[S3]
    """Of the step outputs."""
    _settings: Settings = PrivateAttr(default_factory=Settings.from_environment)

    @property
    def settings(self) -> Settings:
        """The settings of this process."""
        return self._settings

    @cached_property
    def database(self) -> sa.Engine:
        """The database with ``export_requests``."""
        return create_engine(self.settings.database_url)

    @cached_property
    def catalog(self) -> Catalog:
        """What may be exported; the last good one while the live one does not load."""
        return last_good.load(self.settings, self.staging).catalog

    @cached_property
    def organizations(self) -> Organizations:
        """Where organizations are read from."""
        return Organizations()

    @cached_property
    def source(self) -> Source:
        """Where rows are read from."""
        return source_of(self.settings)

    @cached_property
    def staging(self) -> Staging:
        """Where rows and files wait between steps."""
        return Staging(self.settings.staging_url, s3_endpoint_url=self.settings.s3_endpoint_url)

    @cached_property
    def store(self) -> Store:
        """Where files are delivered."""
        return open_store(self.settings)

    def forget_store(self) -> None:
        """Open the store anew when it is next asked for.

        botocore reads a shared credentials file once a client (botocore issue 704): a token that was rotated there is
        seen by a new client alone.
        """
        self.__dict__.pop("store", None)

    @cached_property
    def mail(self) -> MailProvider:
        """How mail leaves."""
        return open_mail_provider(self.settings)


# Which of Dagster's executors runs the steps of an export, and where the steps leave what they hand on.


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
    from export_pipeline.orchestration.references import StepOutputs

    prefix = "/".join(part for part in (parts.path.strip("/"), OUTPUTS) if part)
    return {
        "io_manager": StepOutputs(exports=exports, s3_resource=exports.s3, s3_bucket=parts.netloc, s3_prefix=prefix)
    }
