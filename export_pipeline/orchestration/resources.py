"""Dagster resources: the doors to the database, the stores and the mail provider.

What belongs here: opening them from the settings. What does not: using them.

Settings come from the environment of the process that runs the step, not from Dagster config:
config is stored in snapshots and shown in the UI, and would carry the passwords there.
"""

from functools import cached_property
from typing import Any

import dagster as dg
import sqlalchemy as sa
from dagster_aws.s3 import S3Resource
from pydantic import PrivateAttr

from export_pipeline.catalog.loader import Catalog
from export_pipeline.delivery.mail import MailProvider, open_mail_provider
from export_pipeline.delivery.store import Store, open_store
from export_pipeline.engine.readers import Source, source_of
from export_pipeline.engine.s3_client import build_client
from export_pipeline.engine.staging import Staging
from export_pipeline.orchestration import last_good
from export_pipeline.requests.database import create_engine
from export_pipeline.requests.organizations import Organizations
from export_pipeline.settings import Settings


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
