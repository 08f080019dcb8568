"""The tables of version 0.1.0, which ``migrate.upgrade`` creates from the metadata.

Revision ID: 0001
Create Date: 2026-11-27
"""

from __future__ import annotations

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Nothing is left to do: a database without a revision is created at the newest one."""


def downgrade() -> None:
    """There is no older version."""
