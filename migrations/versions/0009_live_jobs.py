"""index of live jobs"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    live = sa.text("status IN ('queued', 'running')")
    op.create_index("ix_unlearn_jobs_live", "unlearn_jobs", ["tenant_id"], postgresql_where=live)


def downgrade() -> None:
    """Undo."""
    op.drop_index("ix_unlearn_jobs_live", "unlearn_jobs")
