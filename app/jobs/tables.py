"""Jobs, the runs that execute them, their events, the outbox, and the workers that are alive."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.kit.db import Base

HEARTBEAT_AGE = timedelta(seconds=30)
"""A worker that was seen longer ago is not counted as alive."""

# Before there is an end: these may still change by themselves, or wait for a person.
LIVE = ("awaiting_approval", "queued", "running")
# An end without success, after which the same request may be sent anew.
UNSUCCESSFUL = ("gate_failed", "failed", "cancelled")


def _among(*statuses: str) -> str:
    return f"status IN ({', '.join(repr(status) for status in statuses)})"


class Run(Base):
    """One execution on a worker. `attempt` is the fencing token: a write that carries an older one is refused."""

    __tablename__ = "runs"
    __table_args__ = (
        CheckConstraint(_among(*LIVE, "succeeded", *UNSUCCESSFUL), name="status"),
        CheckConstraint("(status = 'running') = (lease_until IS NOT NULL)", name="running_has_lease"),
        # One active run per adapter: two claims at once cannot both succeed.
        Index("uq_runs_adapter_running", "adapter_id", unique=True, postgresql_where=text("status = 'running'")),
        Index("ix_runs_live", "status", "created_at", "id", postgresql_where=text(_among("queued", "running"))),
        # How long this tenant's runs take, for the wait of a queued one.
        Index(
            "ix_runs_measured", "tenant_id", "finished_at", postgresql_where=text(_among("succeeded", "gate_failed"))
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    status: Mapped[str] = mapped_column(default="queued")
    phase: Mapped[str | None]
    attempt: Mapped[int] = mapped_column(default=0)
    lost_workers: Mapped[int] = mapped_column(default=0)
    worker: Mapped[str | None]
    lease_until: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]
    publish_after: Mapped[datetime] = mapped_column(server_default=text("now() + interval '60 seconds'"))
    publish_count: Mapped[int] = mapped_column(default=0)
    source_version: Mapped[int | None]
    step: Mapped[int] = mapped_column(default=0)
    total_steps: Mapped[int | None]
    percent: Mapped[float] = mapped_column(default=0.0)
    eta_seconds: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]


class UnlearnJob(Base):
    """One deletion request, with every knob resolved."""

    __tablename__ = "unlearn_jobs"
    __table_args__ = (
        CheckConstraint(_among(*LIVE, "succeeded", *UNSUCCESSFUL), name="status"),
        CheckConstraint("decision IN ('approved', 'denied')", name="decision"),
        # A person's request makes one job per adapter, until that has ended without success.
        Index(
            "uq_unlearn_jobs_request",
            "tenant_id",
            "adapter_id",
            "subject_request_id",
            unique=True,
            postgresql_where=text(f"subject_request_id IS NOT NULL AND {_among(*LIVE, 'succeeded')}"),
        ),
        # One job begins a fresh adapter, until it has ended without success.
        Index(
            "uq_unlearn_jobs_fresh",
            "adapter_id",
            unique=True,
            postgresql_where=text(f"fresh_lora IS NOT NULL AND {_among(*LIVE, 'succeeded')}"),
        ),
        # One per way to list, so that a page costs the same however many jobs there are.
        Index("ix_unlearn_jobs_list", "tenant_id", "created_at", "id"),
        Index(
            "ix_unlearn_jobs_control_version_id",
            "control_version_id",
            postgresql_where=text("control_version_id IS NOT NULL"),
        ),
        Index("ix_unlearn_jobs_status", "tenant_id", "status", "created_at", "id"),
        Index("ix_unlearn_jobs_adapter", "tenant_id", "adapter_id", "created_at", "id"),
        Index(
            "ix_unlearn_jobs_subject",
            "tenant_id",
            "subject_request_id",
            "created_at",
            "id",
            postgresql_where=text("subject_request_id IS NOT NULL"),
        ),
        Index("ix_unlearn_jobs_due", "tenant_id", "due_at", "id"),
        Index("ix_unlearn_jobs_live", "tenant_id", "due_at", "id", postgresql_where=text(_among(*LIVE))),
        Index(
            "ix_unlearn_jobs_metadata",
            "metadata",
            postgresql_using="gin",
            postgresql_ops={"metadata": "jsonb_path_ops"},
        ),
        # What the deadline clock looks at.
        Index(
            "ix_unlearn_jobs_deadline",
            "due_at",
            postgresql_where=text(f"overdue_noted_at IS NULL AND {_among(*LIVE)}"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    status: Mapped[str] = mapped_column(default="queued")
    forget_set_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    retain_set_id: Mapped[str] = mapped_column(ForeignKey("datasets.id"))
    holdout_set_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    control_version_id: Mapped[str | None] = mapped_column(ForeignKey("adapter_versions.id"))
    method: Mapped[dict[str, Any]] = mapped_column(JSONB)
    policy: Mapped[dict[str, Any]] = mapped_column(JSONB)
    # What the sets held when the job was accepted; null for jobs of version 0.1.
    statistics: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    # Training anew against unlearning (app.jobs.schemas.JobCosts); null where a method that unlearns was named.
    costs: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    # Whether the result was trained anew without any of the records; null unless a run that trains anew released it.
    exact: Mapped[bool | None]
    # The shape of the adapter that the job begins, and the name of its base model; null where it starts from a head.
    fresh_lora: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    seed: Mapped[int] = mapped_column(BigInteger)
    verdict: Mapped[str | None]
    result_version: Mapped[int | None]
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    subject_request_id: Mapped[str | None]
    callback_url: Mapped[str | None]
    requested_at: Mapped[datetime]
    due_at: Mapped[datetime]
    # `metadata` is SQLAlchemy's own word on a mapped class.
    labels: Mapped[dict[str, Any]] = mapped_column("metadata", JSONB)
    # The API key that asked, and the one that approved or denied.
    submitted_by: Mapped[str | None]
    decided_by: Mapped[str | None]
    decided_at: Mapped[datetime | None]
    decision: Mapped[str | None]
    decision_reason: Mapped[str | None]
    original_due_at: Mapped[datetime | None]
    extended_at: Mapped[datetime | None]
    extension_reason: Mapped[str | None]
    due_soon_noted_at: Mapped[datetime | None]
    overdue_noted_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]


class JobEvent(Base):
    """Something that happened to a job, for people and programs. Carries ids and numbers, never records."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_list", "job_id", "id"),)

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("unlearn_jobs.id"))
    level: Mapped[str]
    type: Mapped[str]
    message: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSONB, default=dict)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class OutboxMessage(Base):
    """A Celery message to be published; written in the transaction that makes it true, deleted once published."""

    __tablename__ = "outbox"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    task: Mapped[str]
    queue: Mapped[str]
    argument: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WorkerHeartbeat(Base):
    """A worker process that was alive at `seen_at`."""

    __tablename__ = "worker_heartbeats"

    name: Mapped[str] = mapped_column(primary_key=True)
    queue: Mapped[str]
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now())
