"""statistics of a job"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("unlearn_jobs", sa.Column("statistics", JSONB(), nullable=True))


def downgrade() -> None:
    """Undo."""
    op.drop_column("unlearn_jobs", "statistics")
