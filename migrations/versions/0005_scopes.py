"""scopes of api keys"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply. Keys that are there go on doing what they did; a new one is given its scopes, by no default."""
    scopes = postgresql.ARRAY(sa.Text())
    op.add_column("api_keys", sa.Column("scopes", scopes, nullable=False, server_default=sa.text("'{admin}'")))
    op.alter_column("api_keys", "scopes", server_default=None)


def downgrade() -> None:
    """Undo. Narrow keys would be admin's without their scopes, so that they end."""
    op.execute("UPDATE api_keys SET revoked_at = now() WHERE revoked_at IS NULL AND NOT 'admin' = ANY (scopes)")
    op.drop_column("api_keys", "scopes")
