"""The steps of an export, one module each, and what goes with them: manifest, verification, row counts, clean-up.

They read and write rows, files and mails; Dagster stays out.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import sqlalchemy as sa

    from export_pipeline.catalog.loader import Catalog
    from export_pipeline.messaging.message import MailProvider
    from export_pipeline.settings import Settings
    from export_pipeline.source.readers import Source
    from export_pipeline.storage.staging import Staging
    from export_pipeline.storage.store import Store

# Both are read when the libraries are loaded, so they stand before whatever imports these. At the peak of a CSV of
# 2,000,000 rows Arrow's default, mimalloc, held 110 MB more than jemalloc: it keeps what a thread frees for that
# thread, and blocks are made in one thread and used in another. polars' own threads, for work within a block, held
# 30 MB more and took 5 % more CPU: several blocks are encoded at once already.
if sys.platform == "linux":
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "jemalloc")
os.environ.setdefault("POLARS_MAX_THREADS", "1")


class Services(Protocol):
    """Everything a stage works with; each part is opened at its first use."""

    @property
    def settings(self) -> Settings:
        """The settings of this process."""

    @property
    def database(self) -> sa.Engine:
        """The database with ``export_requests``."""

    @property
    def catalog(self) -> Catalog:
        """What may be exported."""

    @property
    def source(self) -> Source:
        """Where rows are read from."""

    @property
    def staging(self) -> Staging:
        """Where rows and files wait between steps."""

    @property
    def store(self) -> Store:
        """Where files are delivered."""

    @property
    def mail(self) -> MailProvider:
        """How mail leaves."""
