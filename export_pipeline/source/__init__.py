"""Reading the exported data: the query, its compilation to SQL, and lookups.

``compiler.of_tenant`` is the tenant predicate: ``build_query`` and ``lookups`` put it into every statement.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from export_pipeline.source.query import Query
from export_pipeline.source.readers import Snapshot, Source


def open_snapshot(source: Source, query: Query) -> AbstractContextManager[Snapshot]:
    """Open one read-only snapshot of the source, held until the context ends; the query is built for its backend."""
    match source.backend:
        case "postgresql":
            from export_pipeline.source.readers.postgresql import snapshot
        case "sqlite" if source.shares_file:
            from export_pipeline.source.readers.sqlite import shared_snapshot as snapshot
        case "sqlite":
            from export_pipeline.source.readers.sqlite import snapshot
        case _:
            from export_pipeline.source.readers.generic import snapshot
    return snapshot(source, query)
