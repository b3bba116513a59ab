"""life of api keys: expiry, last use, rotation"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

_TIMES = ("previous_until", "expires_at", "last_used_at", "rotated_at")


def upgrade() -> None:
    """Apply."""
    op.add_column("api_keys", sa.Column("previous_hash", sa.LargeBinary(), nullable=True))
    op.create_unique_constraint(op.f("uq_api_keys_previous_hash"), "api_keys", ["previous_hash"])
    for name in _TIMES:
        op.add_column("api_keys", sa.Column(name, sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Undo. What has expired must not come back to life."""
    op.execute("UPDATE api_keys SET revoked_at = expires_at WHERE revoked_at IS NULL AND expires_at <= now()")
    for name in reversed(_TIMES):
        op.drop_column("api_keys", name)
    op.drop_constraint(op.f("uq_api_keys_previous_hash"), "api_keys", type_="unique")
    op.drop_column("api_keys", "previous_hash")
