"""costs of a job"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("unlearn_jobs", sa.Column("costs", JSONB(), nullable=True))
    op.add_column("unlearn_jobs", sa.Column("exact", sa.Boolean(), nullable=True))


def downgrade() -> None:
    """Undo."""
    op.drop_column("unlearn_jobs", "exact")
    op.drop_column("unlearn_jobs", "costs")
