"""The audit trail says who was handed links, and when files were deleted.

Revision ID: 0005
Revises: 0004
Create Date: 2026-11-21
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
_NAME = "ck_export_events_kind_known"
_BEFORE = ("asked", "started", "completed", "failed", "canceled", "requeued", "notified", "downloaded", "expired")
_NOW = (*_BEFORE[:-2], "linked", "downloaded", "expired", "deleted")


def upgrade() -> None:
    """Two more kinds of events."""
    _allow(_NOW)


def downgrade() -> None:
    """Without them."""
    op.execute("DELETE FROM export_events WHERE kind IN ('linked', 'deleted')")
    _allow(_BEFORE)


def _allow(kinds: tuple[str, ...]) -> None:
    listed = ", ".join(f"'{kind}'" for kind in kinds)
    with op.batch_alter_table("export_events", recreate="auto") as batch:
        if op.get_context().dialect.name != "sqlite":  # there the copy of the table leaves its check behind
            batch.drop_constraint(op.f(_NAME), type_="check")
        batch.create_check_constraint(op.f(_NAME), f"kind IN ({listed})")
