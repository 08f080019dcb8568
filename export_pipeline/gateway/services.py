"""What every endpoint works with, opened once a process, and the limiter of request rates."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import sqlalchemy as sa
from fastapi import Depends, Request
from limits.errors import ConfigurationError
from limits.storage import Storage, storage_from_string

from export_pipeline.catalog.loader import Catalog, load_catalog
from export_pipeline.catalog.model import Dataset
from export_pipeline.database.engine import create_engine
from export_pipeline.failures import ExportFailure, FailureCode
from export_pipeline.requests import rate_windows
from export_pipeline.settings import Settings, SettingsError, local_path
from export_pipeline.source.readers import Source, source_of
from export_pipeline.storage import open_store
from export_pipeline.storage.store import Store

THREADS = 16
"""Requests that one process handles at once; each holds at most one connection of the pool."""
MINUTE, HOUR = 60, 3600
"""Windows of the limiter, in seconds."""


@dataclass(frozen=True)
class Count:
    """What is left of a window after a request."""

    limit: int
    remaining: int
    ends_at: int
    """Unix seconds."""
    allowed: bool


class Limiter:
    """Counts requests in windows that begin and end with the clock's minutes and hours, over all processes.

    The window's number is part of its key: one statement counts and returns the new count, on every storage.
    """

    def __init__(self, increment: Callable[[str, int], int]) -> None:
        """``increment`` adds 1 to a key that is kept for so many seconds, and returns the new count."""
        self._increment = increment

    @classmethod
    def open(cls, settings: Settings, database: sa.Engine) -> Limiter:
        """The limiter that ``EXPORT_RATE_LIMIT_URL`` names; by default it counts in the request database."""
        if not settings.rate_limit_url:

            def increment(key: str, seconds: int) -> int:
                with database.begin() as connection:
                    return rate_windows.count(connection, key, seconds)

            return cls(increment)
        try:
            storage = storage_from_string(settings.rate_limit_url, wrap_exceptions=True)
        except (ConfigurationError, ValueError):
            storage = None
        if not isinstance(storage, Storage):
            raise SettingsError(
                "EXPORT_RATE_LIMIT_URL: expected redis://host:port (with the package redis), memory:// or nothing"
            )
        return cls(storage.incr)

    def count(self, limit: int, seconds: int, *names: str) -> Count:
        """Count one request of ``names`` (an endpoint, an organization) in a window of ``MINUTE`` or ``HOUR``."""
        number = int(time.time()) // seconds
        # Keep an ended window for one more, for processes whose clock is a little behind.
        hits = self._increment("/".join([*names, str(seconds), str(number)]), 2 * seconds)
        return Count(limit, max(0, limit - hits), (number + 1) * seconds, hits <= limit)


@dataclass(frozen=True)
class Services:
    """An installation as the gateway sees it."""

    settings: Settings
    database: sa.Engine
    catalog: Catalog
    source: Source
    store: Store
    limiter: Limiter

    @property
    def serves_files(self) -> bool:
        """The store is a directory, whose files only the gateway can serve."""
        return local_path(self.settings.store_url) is not None

    def dataset(self, name: str) -> Dataset:
        """A dataset of the catalog (``unknown_dataset``)."""
        if name not in self.catalog:
            message = f"dataset: this installation has no dataset {name}."
            raise ExportFailure(FailureCode.UNKNOWN_DATASET, message, field="dataset")
        return self.catalog[name]

    def close(self) -> None:
        """Close the database."""
        self.database.dispose()


def open_services(settings: Settings) -> Services:
    """Open everything; ``SettingsError``, ``CatalogError`` or ``ExportFailure`` (``store_refused``) if it cannot be."""
    database = create_engine(settings.database_url, connections=THREADS)
    return Services(
        settings=settings,
        database=database,
        catalog=load_catalog(settings.catalog),
        source=source_of(settings),
        store=open_store(settings),
        limiter=Limiter.open(settings, database),
    )


def services_of(request: Request) -> Services:
    """The services of the process that answers."""
    services: Services = request.app.state.services
    return services


async def _services(request: Request) -> Services:
    # Asynchronous, so that it takes no thread: there is nothing to wait for.
    return services_of(request)


Serves = Annotated[Services, Depends(_services)]
