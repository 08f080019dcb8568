"""Any other database that SQLAlchemy speaks: pandas ``read_sql`` in chunks with Arrow types.

What belongs here: the reader that needs no driver of its own, several times slower than ADBC.
What does not: the statement.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pandas as pd
import pyarrow as pa
import sqlalchemy as sa

from export_pipeline.engine.query import Query
from export_pipeline.engine.readers import STEP_ROWS, Snapshot
from export_pipeline.engine.readers.types import joined, staged_schema, to_staged, translated


@contextmanager
def snapshot(source_url: str, query: Query) -> Iterator[Snapshot]:
    """One transaction at the database's strongest snapshot isolation that reads without locks."""
    engine = sa.create_engine(source_url, poolclass=sa.NullPool, hide_parameters=True)
    if engine.dialect.name in ("mysql", "mariadb", "postgresql"):
        engine = engine.execution_options(isolation_level="REPEATABLE READ")
    with translated((sa.exc.SQLAlchemyError,)):
        connection = engine.connect()
    with connection:  # one transaction from the first statement on; closing ends it, there is nothing to commit
        with translated((sa.exc.SQLAlchemyError,)):
            row_count = connection.execute(query.count).scalar_one()
        yield Snapshot(row_count, datetime.now(UTC), joined(_batches(connection, query)))


def _batches(connection: sa.Connection, query: Query) -> Iterator[pa.RecordBatch]:
    schema = staged_schema(query.columns)
    streaming = connection.execution_options(stream_results=True, max_row_buffer=STEP_ROWS)
    with translated((sa.exc.SQLAlchemyError,)):
        for frame in pd.read_sql(query.rows, streaming, chunksize=STEP_ROWS, dtype_backend="pyarrow"):
            for batch in pa.Table.from_pandas(frame, preserve_index=False).to_batches():
                yield to_staged(batch, query.columns, schema)
