"""Source databases that the demo does not make: many contacts of one organization."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import sqlalchemy as sa

from export_pipeline.demo.data import DEFAULT_SEED, ORGANIZATIONS, schema
from export_pipeline_tests.adversarial import generate_contacts, load_batches

ORGANIZATION = ORGANIZATIONS[0].id


def load_one_organization(url: str, rows: int) -> None:
    """Make the demo's contacts, all of the first organization: ids 1 to ``rows``."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = sa.create_engine(parsed)
    try:
        with engine.begin() as connection:
            connection.execute(sa.schema.CreateTable(schema.contacts))
        load_batches(parsed, schema.contacts, _of_one(generate_contacts(rows, DEFAULT_SEED)))
        with engine.begin() as connection:
            for index in schema.contacts.indexes:
                index.create(connection)
            connection.execute(sa.text("ANALYZE"))
    finally:
        engine.dispose()


def _of_one(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        place = batch.schema.get_field_index("organization_id")
        owner = pa.repeat(pa.scalar(ORGANIZATION), batch.num_rows)
        yield batch.set_column(place, batch.schema.field(place), owner)
