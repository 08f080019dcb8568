"""The databases of the benchmark: made once, with the tables that the chosen works need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from export_pipeline_tests.adversarial import load_batches
from export_pipeline_tests.benchmarks.tables import BenchTable
from export_pipeline_tests.servers.postgres_server import PostgresServer, serve_postgres

Backend = Literal["postgresql", "sqlite"]


@dataclass
class Databases:
    """A PostgreSQL server and a SQLite file; tables are loaded when they are first asked for."""

    server: PostgresServer
    postgresql: str = field(repr=False)
    sqlite: Path
    progress: Callable[[str], None]
    _loaded: set[tuple[Backend, str]] = field(default_factory=set)

    def url(self, backend: Backend) -> str:
        """A SQLAlchemy URL."""
        return self.postgresql if backend == "postgresql" else f"sqlite:///{self.sqlite}"

    def load(self, backend: Backend, wanted: BenchTable) -> None:
        """Make a table, unless it is there."""
        if (backend, wanted.name) in self._loaded:
            return
        self.progress(f"making {wanted.name} on {backend}")
        table = wanted.table()
        url = sa.make_url(self.url(backend))
        engine = sa.create_engine(url)
        try:
            with engine.begin() as connection:
                connection.execute(sa.schema.CreateTable(table))
            load_batches(url, table, wanted.batches())
            with engine.begin() as connection:
                for index in table.indexes:
                    index.create(connection)
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                # Else the first that reads pays for setting the hint bits of every row.
                connection.exec_driver_sql(
                    f"VACUUM ANALYZE {table.name}" if backend == "postgresql" else f"ANALYZE {table.name}"
                )
        finally:
            engine.dispose()
        self._loaded.add((backend, wanted.name))


@contextmanager
def serve_databases(directory: Path, progress: Callable[[str], None]) -> Iterator[Databases]:
    """Empty databases until the block ends; the SQLite file lies in ``directory``."""
    with ExitStack() as stack:
        progress("starting PostgreSQL")
        server = stack.enter_context(serve_postgres())
        url = stack.enter_context(server.fresh_database())
        named = url.replace("postgresql://", "postgresql+psycopg://", 1)
        yield Databases(server, named, directory / "source.db", progress)
