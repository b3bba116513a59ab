"""fresh adapters"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("adapters", sa.Column("fresh", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("unlearn_jobs", sa.Column("fresh_lora", JSONB(), nullable=True))
    op.create_index(
        "uq_unlearn_jobs_fresh",
        "unlearn_jobs",
        ["adapter_id"],
        unique=True,
        postgresql_where=sa.text(
            "fresh_lora IS NOT NULL AND status IN ('awaiting_approval', 'queued', 'running', 'succeeded')"
        ),
    )


def downgrade() -> None:
    """Undo."""
    op.drop_index("uq_unlearn_jobs_fresh", table_name="unlearn_jobs")
    op.drop_column("unlearn_jobs", "fresh_lora")
    op.drop_column("adapters", "fresh")
