"""training sets"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    _purposes("'forget', 'retain', 'holdout', 'training'")
    op.add_column("adapters", sa.Column("training_set_id", sa.String(), nullable=True))
    op.add_column("adapters", sa.Column("recipe", JSONB(), nullable=True))
    op.add_column(
        "adapters", sa.Column("unmatched_records", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    )
    op.create_foreign_key(op.f("fk_adapters_training_set_id"), "adapters", "datasets", ["training_set_id"], ["id"])
    op.create_index(op.f("ix_adapters_training_set_id"), "adapters", ["training_set_id"])
    op.create_check_constraint(
        op.f("ck_adapters_training_set_has_recipe"), "adapters", "training_set_id IS NULL OR recipe IS NOT NULL"
    )


def downgrade() -> None:
    """Undo. Training sets become retain sets, which nothing names: their clock destroys them."""
    op.drop_constraint(op.f("ck_adapters_training_set_has_recipe"), "adapters", type_="check")
    op.drop_index(op.f("ix_adapters_training_set_id"), table_name="adapters")
    op.drop_constraint(op.f("fk_adapters_training_set_id"), "adapters", type_="foreignkey")
    for column in ("unmatched_records", "recipe", "training_set_id"):
        op.drop_column("adapters", column)
    op.execute("UPDATE datasets SET purpose = 'retain' WHERE purpose = 'training'")
    _purposes("'forget', 'retain', 'holdout'")


def _purposes(words: str) -> None:
    name = op.f("ck_datasets_purpose")
    op.drop_constraint(name, "datasets", type_="check")
    op.create_check_constraint(name, "datasets", f"purpose IN ({words})")
