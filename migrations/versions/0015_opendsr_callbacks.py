"""callbacks of opendsr requests"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "opendsr_callbacks",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("url", sa.String(), nullable=False),
        sa.Column("told", sa.String(), server_default="pending", nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_opendsr_callbacks_tenant_id")),
        sa.ForeignKeyConstraint(
            ["request_id"], ["opendsr_requests.id"], name=op.f("fk_opendsr_callbacks_request_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_opendsr_callbacks")),
    )
    op.create_index(
        "ix_opendsr_callbacks_open",
        "opendsr_callbacks",
        ["request_id"],
        postgresql_where=sa.text("told <> 'completed'"),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_table("opendsr_callbacks")
