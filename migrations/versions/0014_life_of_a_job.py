"""life of a job: approval, deadlines, one job per request, lists, answers to repeated requests"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

_LIVE = "status IN ('awaiting_approval', 'queued', 'running')"
_OLD = "'queued', 'running', 'succeeded', 'gate_failed', 'failed', 'cancelled'"
_REQUEST = "status IN ('awaiting_approval', 'queued', 'running', 'succeeded')"
_COLUMNS: dict[str, sa.types.TypeEngine[Any]] = {
    "submitted_by": sa.String(),
    "decided_by": sa.String(),
    "decided_at": sa.DateTime(timezone=True),
    "decision": sa.String(),
    "decision_reason": sa.String(),
    "original_due_at": sa.DateTime(timezone=True),
    "extended_at": sa.DateTime(timezone=True),
    "extension_reason": sa.String(),
    "due_soon_noted_at": sa.DateTime(timezone=True),
    "overdue_noted_at": sa.DateTime(timezone=True),
}
_JOBS = "unlearn_jobs"


def upgrade() -> None:
    """Apply."""
    _refuse_duplicates()
    for table in ("runs", _JOBS):
        op.drop_constraint(op.f(f"ck_{table}_status"), table)
        op.create_check_constraint(op.f(f"ck_{table}_status"), table, f"status IN ('awaiting_approval', {_OLD})")
    for name, kind in _COLUMNS.items():
        op.add_column(_JOBS, sa.Column(name, kind, nullable=True))
    op.create_check_constraint(op.f("ck_unlearn_jobs_decision"), _JOBS, "decision IN ('approved', 'denied')")
    op.drop_constraint("uq_unlearn_jobs_tenant_id_idempotency_key", _JOBS)
    op.drop_column(_JOBS, "idempotency_key")
    op.drop_column(_JOBS, "request_digest")
    op.create_table(
        "accepted_requests",
        sa.Column("tenant_id", sa.String(), nullable=False),
        sa.Column("key_digest", sa.LargeBinary(), nullable=False),
        sa.Column("request_digest", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("location", sa.String(), nullable=False),
        sa.Column("body", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenants.id"], name=op.f("fk_accepted_requests_tenant_id")),
        sa.PrimaryKeyConstraint("tenant_id", "key_digest", name=op.f("pk_accepted_requests")),
    )
    op.create_index(op.f("ix_accepted_requests_expires_at"), "accepted_requests", ["expires_at"])
    _create_indices()


def downgrade() -> None:
    """Undo. Jobs that wait for approval are cancelled, since nobody could approve them any more."""
    for table in ("runs", _JOBS):
        op.execute(f"UPDATE {table} SET status = 'cancelled' WHERE status = 'awaiting_approval'")  # noqa: S608
    op.drop_table("accepted_requests")
    for name in ("request", "status", "adapter", "subject", "due", "live", "metadata", "deadline"):
        prefix = "uq" if name == "request" else "ix"
        op.drop_index(f"{prefix}_unlearn_jobs_{name}", _JOBS)
    op.drop_index("ix_runs_measured", "runs")
    op.drop_index("ix_runs_live", "runs")
    op.create_index(
        "ix_runs_live",
        "runs",
        ["status", "created_at"],
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.create_index(
        "ix_unlearn_jobs_live", _JOBS, ["tenant_id"], postgresql_where=sa.text("status IN ('queued', 'running')")
    )
    op.drop_constraint(op.f("ck_unlearn_jobs_decision"), _JOBS)
    for name in _COLUMNS:
        op.drop_column(_JOBS, name)
    for table in ("runs", _JOBS):
        op.drop_constraint(op.f(f"ck_{table}_status"), table)
        op.create_check_constraint(op.f(f"ck_{table}_status"), table, f"status IN ({_OLD})")
    op.add_column(_JOBS, sa.Column("idempotency_key", sa.String(), nullable=True))
    op.add_column(_JOBS, sa.Column("request_digest", sa.LargeBinary(), nullable=True))
    op.create_unique_constraint(
        op.f("uq_unlearn_jobs_tenant_id_idempotency_key"), _JOBS, ["tenant_id", "idempotency_key"]
    )


def _refuse_duplicates() -> None:
    found = op.get_bind().scalar(
        sa.text(f"""SELECT count(*) FROM (SELECT 1 FROM unlearn_jobs
            WHERE subject_request_id IS NOT NULL AND {_REQUEST}
            GROUP BY tenant_id, adapter_id, subject_request_id HAVING count(*) > 1) AS doubled""")  # noqa: S608
    )
    if found:
        raise RuntimeError(
            f"{found} subject_request_id(s) have several jobs on one adapter that are live or have succeeded; from "
            "now on there is one. Cancel what is live twice, clear the column in what succeeded twice, then migrate."
        )


def _create_indices() -> None:
    op.create_index(
        "uq_unlearn_jobs_request",
        _JOBS,
        ["tenant_id", "adapter_id", "subject_request_id"],
        unique=True,
        postgresql_where=sa.text(f"subject_request_id IS NOT NULL AND {_REQUEST}"),
    )
    op.create_index("ix_unlearn_jobs_status", _JOBS, ["tenant_id", "status", "created_at", "id"])
    op.create_index("ix_unlearn_jobs_adapter", _JOBS, ["tenant_id", "adapter_id", "created_at", "id"])
    op.create_index(
        "ix_unlearn_jobs_subject",
        _JOBS,
        ["tenant_id", "subject_request_id", "created_at", "id"],
        postgresql_where=sa.text("subject_request_id IS NOT NULL"),
    )
    op.create_index("ix_unlearn_jobs_due", _JOBS, ["tenant_id", "due_at", "id"])
    op.drop_index("ix_unlearn_jobs_live", _JOBS)
    op.create_index("ix_unlearn_jobs_live", _JOBS, ["tenant_id", "due_at", "id"], postgresql_where=sa.text(_LIVE))
    op.create_index(
        "ix_unlearn_jobs_metadata",
        _JOBS,
        ["metadata"],
        postgresql_using="gin",
        postgresql_ops={"metadata": "jsonb_path_ops"},
    )
    op.create_index(
        "ix_unlearn_jobs_deadline",
        _JOBS,
        ["due_at"],
        postgresql_where=sa.text(f"overdue_noted_at IS NULL AND {_LIVE}"),
    )
    op.drop_index("ix_runs_live", "runs")
    op.create_index(
        "ix_runs_live",
        "runs",
        ["status", "created_at", "id"],
        postgresql_where=sa.text("status IN ('queued', 'running')"),
    )
    op.create_index(
        "ix_runs_measured",
        "runs",
        ["tenant_id", "finished_at"],
        postgresql_where=sa.text("status IN ('succeeded', 'gate_failed')"),
    )
