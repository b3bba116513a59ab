"""data keys"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply. The planner's statistics hold values of columns: none of this one, and those that are there go."""
    op.execute("ALTER TABLE datasets ALTER COLUMN wrapped_key TYPE bytea")
    op.execute("ALTER TABLE datasets ALTER COLUMN wrapped_key SET STATISTICS 0")


def downgrade() -> None:
    """Undo."""
    op.execute("ALTER TABLE datasets ALTER COLUMN wrapped_key SET STATISTICS -1")
