"""How many requests an organization may make in a window of time, counted right by any number of processes."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute
from limits.errors import ConfigurationError
from limits.storage import Storage, storage_from_string

from export_pipeline.database.engine import reading
from export_pipeline.requests import rate_windows
from export_pipeline.settings import Settings, SettingsError

_DATABASE = "requests-database"


@dataclass(frozen=True)
class Count:
    """What is left of a window after a request."""

    limit: int
    remaining: int
    ends_at: int
    """Unix seconds."""
    allowed: bool

    @property
    def retry_after(self) -> int:
        """Whole seconds until the window ends, at least one."""
        return max(1, self.ends_at - int(time.time()))


class DatabaseStorage(Storage):
    """Counts in the request database, for ``limits``."""

    STORAGE_SCHEME = [_DATABASE]  # noqa: RUF012 - the library's own declaration

    def __init__(self, uri: str | None = None, *, engine: sa.Engine, **options: Any) -> None:
        super().__init__(uri, **options)
        self._engine = engine

    @property
    def base_exceptions(self) -> type[Exception] | tuple[type[Exception], ...]:
        """What the database raises."""
        return sa.exc.SQLAlchemyError

    def incr(self, key: str, expiry: int, amount: int = 1) -> int:
        """Count, and return the new count."""
        with self._engine.begin() as connection:
            return rate_windows.count(connection, key, expiry, amount)

    def get(self, key: str) -> int:
        """The count."""
        with reading(self._engine) as connection:
            return rate_windows.window(connection, key)[0]

    def get_expiry(self, key: str) -> float:
        """When the window ends, Unix seconds."""
        with reading(self._engine) as connection:
            return rate_windows.window(connection, key)[1]

    def check(self) -> bool:
        """Whether the database answers."""
        try:
            self.get("")
        except sa.exc.SQLAlchemyError:
            return False
        return True

    def reset(self) -> int | None:
        """Forget all counts."""
        with self._engine.begin() as connection:
            return rate_windows.forget(connection)

    def clear(self, key: str) -> None:
        """Forget one count."""
        with self._engine.begin() as connection:
            rate_windows.forget(connection, key)


def per_minute(amount: int) -> RateLimitItem:
    """So many a minute."""
    return RateLimitItemPerMinute(amount)


def per_hour(amount: int) -> RateLimitItem:
    """So many an hour."""
    return RateLimitItemPerHour(amount)


class Limiter:
    """Counts requests in windows that begin and end with the clock's minutes and hours.

    The window's number is part of its key: one statement counts and says what is left, on every storage.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @classmethod
    def open(cls, settings: Settings, database: sa.Engine) -> Limiter:
        """The limiter that ``EXPORT_RATE_LIMIT_URL`` names.

        Raises:
            SettingsError: it names nothing that can count.
        """
        if not settings.rate_limit_url:
            return cls(DatabaseStorage(engine=database))
        try:
            storage = storage_from_string(settings.rate_limit_url, wrap_exceptions=True)
        except (ConfigurationError, ValueError):
            storage = None
        if not isinstance(storage, Storage):
            raise SettingsError(
                "EXPORT_RATE_LIMIT_URL: expected redis://host:port (with the package redis), memory:// or nothing"
            )
        return cls(storage)

    def count(self, item: RateLimitItem, *names: str) -> Count:
        """Count one request of ``names`` (an endpoint, an organization)."""
        seconds = item.get_expiry()
        number = int(time.time()) // seconds
        # An ended window is kept one more, for processes whose clock is a little behind.
        hits = self._storage.incr(item.key_for(*names, str(number)), 2 * seconds)
        return Count(item.amount, max(0, item.amount - hits), (number + 1) * seconds, hits <= item.amount)
