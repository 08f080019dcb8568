"""When the installation's sensor last ticked, for monitors that have no Dagster instance.

Revision ID: 0007
Revises: 0006
Create Date: 2026-11-27
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from export_pipeline.database.types import UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One table."""
    op.create_table(
        "export_ticks",
        sa.Column("sensor", sa.Text(), nullable=False),
        sa.Column(
            "ticked_at", UtcDateTime(), nullable=False, comment="export-pipeline health reads how long ago that is"
        ),
        sa.PrimaryKeyConstraint("sensor", name=op.f("pk_export_ticks")),
    )


def downgrade() -> None:
    """Without it."""
    op.drop_table("export_ticks")
