"""aliases and purged versions"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "adapter_aliases",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("adapter_id", sa.String(), nullable=False),
        sa.Column("version_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_adapter_aliases_tenant_id")),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_adapter_aliases_adapter_id")),
        sa.ForeignKeyConstraint(["version_id"], ["adapter_versions.id"], name=op.f("fk_adapter_aliases_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter_aliases")),
        sa.UniqueConstraint("adapter_id", "name", name=op.f("uq_adapter_aliases_adapter_id_name")),
    )
    op.add_column("adapter_versions", sa.Column("purged_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_adapter_versions_superseded",
        "adapter_versions",
        ["superseded_at"],
        postgresql_where=sa.text("status = 'superseded'"),
    )
    op.create_index(
        "ix_unlearn_jobs_control_version_id",
        "unlearn_jobs",
        ["control_version_id"],
        postgresql_where=sa.text("control_version_id IS NOT NULL"),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_index("ix_unlearn_jobs_control_version_id", "unlearn_jobs")
    op.drop_index("ix_adapter_versions_superseded", "adapter_versions")
    op.drop_column("adapter_versions", "purged_at")
    op.drop_table("adapter_aliases")
