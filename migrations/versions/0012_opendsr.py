"""identity indexes and opendsr requests"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "identity_indexes",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("adapter_id", sa.String(), nullable=False),
        sa.Column("retain_set_id", sa.String(), nullable=True),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("remaining", sa.BigInteger(), nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("blob_key", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("wrapped_key", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.Column("purge_at", _TIME, nullable=False),
        sa.Column("purged_at", _TIME, nullable=True),
        sa.CheckConstraint(
            "(purged_at IS NULL) = (wrapped_key IS NOT NULL)", name=op.f("ck_identity_indexes_purged_without_key")
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_identity_indexes_tenant_id")),
        sa.ForeignKeyConstraint(["adapter_id"], ["adapters.id"], name=op.f("fk_identity_indexes_adapter_id")),
        sa.ForeignKeyConstraint(["retain_set_id"], ["datasets.id"], name=op.f("fk_identity_indexes_retain_set_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_identity_indexes")),
    )
    op.create_index("ix_identity_indexes_list", "identity_indexes", ["tenant_id", "created_at", "id"])
    op.create_index(op.f("ix_identity_indexes_retain_set_id"), "identity_indexes", ["retain_set_id"])
    op.create_index(op.f("ix_identity_indexes_purge_at"), "identity_indexes", ["purge_at"])
    op.create_table(
        "identity_entries",
        sa.Column("index_id", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("fingerprints", ARRAY(sa.LargeBinary()), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("records", sa.Integer(), nullable=False),
        sa.Column("sealed_key", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["index_id"], ["identity_indexes.id"], name=op.f("fk_identity_entries_index_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_identity_entries_tenant_id")),
        sa.PrimaryKeyConstraint("index_id", "number", name=op.f("pk_identity_entries")),
    )
    op.create_index("ix_identity_entries_fingerprints", "identity_entries", ["fingerprints"], postgresql_using="gin")
    op.create_table(
        "identity_claims",
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("index_id", sa.String(), nullable=False),
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["unlearn_jobs.id"], name=op.f("fk_identity_claims_job_id")),
        sa.ForeignKeyConstraint(
            ["index_id", "number"],
            ["identity_entries.index_id", "identity_entries.number"],
            name=op.f("fk_identity_claims_index_id_number"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_identity_claims_tenant_id")),
        sa.PrimaryKeyConstraint("job_id", "index_id", "number", name=op.f("pk_identity_claims")),
    )
    op.create_index("ix_identity_claims_entry", "identity_claims", ["index_id", "number"])
    # The planner's statistics hold values of columns: none of these, which are to be gone when they are gone.
    op.execute("ALTER TABLE identity_indexes ALTER COLUMN wrapped_key SET STATISTICS 0")
    for column in ("sealed_key", "fingerprints"):
        op.execute(f"ALTER TABLE identity_entries ALTER COLUMN {column} SET STATISTICS 0")
    _create_requests()


def _create_requests() -> None:
    op.create_table(
        "opendsr_requests",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("subject_request_id", sa.String(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("regulation", sa.String(), nullable=False),
        sa.Column("api_version", sa.String(), nullable=False),
        sa.Column("results_count", sa.BigInteger(), nullable=False),
        sa.Column("submitted_at", _TIME, nullable=False),
        sa.Column("due_at", _TIME, nullable=False),
        sa.Column("received_at", _TIME, server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("regulation IN ('gdpr', 'ccpa')", name=op.f("ck_opendsr_requests_regulation")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_opendsr_requests_tenant_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_opendsr_requests")),
        sa.UniqueConstraint(
            "tenant_id", "subject_request_id", name=op.f("uq_opendsr_requests_tenant_id_subject_request_id")
        ),
    )
    op.create_table(
        "opendsr_jobs",
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("job_id", sa.String(), nullable=False),
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["request_id"], ["opendsr_requests.id"], name=op.f("fk_opendsr_jobs_request_id")),
        sa.ForeignKeyConstraint(["job_id"], ["unlearn_jobs.id"], name=op.f("fk_opendsr_jobs_job_id")),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_opendsr_jobs_tenant_id")),
        sa.PrimaryKeyConstraint("request_id", "job_id", name=op.f("pk_opendsr_jobs")),
        sa.UniqueConstraint("job_id", name=op.f("uq_opendsr_jobs_job_id")),
    )


def downgrade() -> None:
    """Undo."""
    for table in (
        "opendsr_jobs",
        "opendsr_requests",
        "identity_claims",
        "identity_entries",
        "identity_indexes",
    ):
        op.drop_table(table)
