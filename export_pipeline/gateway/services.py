"""What every endpoint works with, opened once a process."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

import sqlalchemy as sa
from fastapi import Depends, Request

from export_pipeline.catalog.loader import Catalog, load_catalog
from export_pipeline.catalog.model import Dataset
from export_pipeline.database.engine import create_engine
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.gateway.rate_limits import Limiter
from export_pipeline.requests.organizations import Organizations
from export_pipeline.settings import Settings, local_path
from export_pipeline.source.readers import Source, source_of
from export_pipeline.storage.store import Store, open_store

THREADS = 16
"""Requests that one process works on at once; each holds at most one connection of the pool."""


@dataclass(frozen=True)
class Services:
    """An installation as the gateway sees it."""

    settings: Settings
    database: sa.Engine
    catalog: Catalog
    organizations: Organizations
    source: Source
    store: Store
    limiter: Limiter

    @property
    def serves_files(self) -> bool:
        """The store is a directory, whose files nobody but the gateway can serve."""
        return local_path(self.settings.store_url) is not None

    @property
    def retention(self) -> timedelta:
        """How long files are kept."""
        return timedelta(days=self.settings.retention_days)

    def dataset(self, name: str) -> Dataset:
        """A dataset that a dialect is about.

        Raises:
            ExportFailure: ``unknown_dataset`` if this installation's catalog has none of that name.
        """
        if name not in self.catalog:
            message = f"dataset: this installation has none called {name}."
            raise ExportFailure(FailureCode.UNKNOWN_DATASET, message, field="dataset")
        return self.catalog[name]

    def close(self) -> None:
        """Let the database go."""
        self.database.dispose()


def open_services(settings: Settings) -> Services:
    """Open everything.

    Raises:
        SettingsError: ``EXPORT_RATE_LIMIT_URL`` is wrong.
        CatalogError: a dataset's declaration is wrong.
        ExportFailure: ``store_refused``, as ``open_store``.
    """
    database = create_engine(settings.database_url, connections=THREADS)
    return Services(
        settings=settings,
        database=database,
        catalog=load_catalog(settings.catalog),
        organizations=Organizations(),
        source=source_of(settings),
        store=open_store(settings),
        limiter=Limiter.open(settings, database),
    )


def services_of(request: Request) -> Services:
    """The services of the process that answers."""
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:
    # Asynchronous, so that it costs no thread: there is nothing to wait for.
    return services_of(request)


Serves = Annotated[Services, Depends(_services)]
