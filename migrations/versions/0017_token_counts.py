"""token counts of datasets"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("datasets", sa.Column("token_counts", JSONB(), nullable=True))


def downgrade() -> None:
    """Undo."""
    op.drop_column("datasets", "token_counts")
