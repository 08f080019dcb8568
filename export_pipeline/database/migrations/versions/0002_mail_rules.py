"""Failure mails, charges for mails, and the members of an organization.

Revision ID: 0002
Revises: 0001
Create Date: 2026-11-21
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from export_pipeline.database.types import UtcDateTime, UuidText, big_integer, current_instant, json_type

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """One notification a request, recipient and kind; charges; members."""
    with op.batch_alter_table("export_notifications") as batch:
        batch.add_column(sa.Column("kind", sa.Text(), server_default="ready", nullable=False))
        batch.create_check_constraint(op.f("ck_export_notifications_kind_known"), "kind IN ('ready', 'failed')")
        batch.drop_constraint(op.f("uq_export_notifications_request_id_recipient"), type_="unique")
        batch.create_unique_constraint(
            op.f("uq_export_notifications_request_id_recipient_kind"), ["request_id", "recipient", "kind"]
        )
    op.create_table(
        "email_charges",
        sa.Column("id", big_integer(), sa.Identity(), nullable=False),
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column(
            "request_uid", UuidText(), nullable=False, comment="no foreign key: what was charged outlives the row"
        ),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), server_default="reserved", nullable=False),
        sa.Column("created_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.Column("updated_at", UtcDateTime(), server_default=current_instant(), nullable=False),
        sa.CheckConstraint("status IN ('reserved', 'charged', 'released')", name=op.f("ck_email_charges_status_known")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_email_charges")),
        sa.UniqueConstraint("request_uid", "recipient", name=op.f("uq_email_charges_request_uid_recipient")),
    )
    op.create_index(op.f("ix_email_charges_organization_id"), "email_charges", ["organization_id"], unique=False)
    op.create_table(
        "organization_members",
        sa.Column("organization_id", sa.Text(), nullable=False),
        sa.Column("member_id", sa.Text(), nullable=False, comment="what requested_by holds"),
        sa.Column("email", sa.Text(), nullable=True, comment="where failures are told; NULL = nowhere"),
        sa.Column("locale", sa.Text(), nullable=True, comment="en, es, pt; anything else = en"),
        sa.Column(
            "permissions",
            json_type(),
            server_default=sa.text("'[]'"),
            nullable=False,
            comment="such as entities:export",
        ),
        sa.CheckConstraint(
            "permissions IS NULL OR json_valid(permissions)", name=op.f("ck_organization_members_permissions_json")
        ).ddl_if(dialect="sqlite"),
        sa.PrimaryKeyConstraint("organization_id", "member_id", name=op.f("pk_organization_members")),
    )


def downgrade() -> None:
    """Back to one notification a request and recipient."""
    op.drop_table("organization_members")
    op.drop_index(op.f("ix_email_charges_organization_id"), table_name="email_charges")
    op.drop_table("email_charges")
    op.execute("DELETE FROM export_notifications WHERE kind <> 'ready'")
    with op.batch_alter_table("export_notifications") as batch:
        batch.drop_constraint(op.f("uq_export_notifications_request_id_recipient_kind"), type_="unique")
        batch.drop_constraint(op.f("ck_export_notifications_kind_known"), type_="check")
        batch.drop_column("kind")
        batch.create_unique_constraint(
            op.f("uq_export_notifications_request_id_recipient"), ["request_id", "recipient"]
        )
