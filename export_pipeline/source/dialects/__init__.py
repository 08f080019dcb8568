"""The SQL that differs between databases: one ``Dialect`` object for each, and no such SQL anywhere else."""

from __future__ import annotations

from export_pipeline.source.dialects import mariadb, postgresql, sqlite
from export_pipeline.source.dialects.base import Dialect

_DIALECTS = {
    "postgresql": postgresql.DIALECT,
    "sqlite": sqlite.DIALECT,
    **dict.fromkeys(mariadb.BACKENDS, mariadb.DIALECT),
}


def dialect_of(backend: str) -> Dialect:
    """The dialect of a database by SQLAlchemy's name for it; one that supports few filters for an unknown name."""
    return _DIALECTS.get(backend) or Dialect(backend)
