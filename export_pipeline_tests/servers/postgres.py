"""A real PostgreSQL for the tests, started by the code that the benchmark uses."""

from __future__ import annotations

from export_pipeline.bench.postgres_server import PostgresServer, serve_postgres

__all__ = ["PostgresServer", "serve_postgres"]
