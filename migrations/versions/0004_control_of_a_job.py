"""control of a job"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("unlearn_jobs", sa.Column("control_version_id", sa.String(), nullable=True))
    op.create_foreign_key(
        op.f("fk_unlearn_jobs_control_version_id"), "unlearn_jobs", "adapter_versions", ["control_version_id"], ["id"]
    )


def downgrade() -> None:
    """Undo."""
    op.drop_constraint(op.f("fk_unlearn_jobs_control_version_id"), "unlearn_jobs", type_="foreignkey")
    op.drop_column("unlearn_jobs", "control_version_id")
