"""Alembic's environment. It uses the connection of ``database.migrate``."""

from __future__ import annotations

from alembic import context

from export_pipeline.database.migrate import VERSION_TABLE
from export_pipeline.database.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
