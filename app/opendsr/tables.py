"""Requests of data subjects: ids, times and counts. Who asked stands nowhere."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from app.kit.db import Base


class OpenDsrRequest(Base):
    """One erasure request. `digest` tells an equal request from another one, and nothing about either."""

    __tablename__ = "opendsr_requests"
    __table_args__ = (
        UniqueConstraint("tenant_id", "subject_request_id"),
        CheckConstraint("regulation IN ('gdpr', 'ccpa')", name="regulation"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    subject_request_id: Mapped[str]
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    regulation: Mapped[str]
    api_version: Mapped[str]
    results_count: Mapped[int] = mapped_column(BigInteger, default=0)
    submitted_at: Mapped[datetime]
    due_at: Mapped[datetime]
    received_at: Mapped[datetime] = mapped_column(server_default=func.now())


class OpenDsrJob(Base):
    """A job that works on a request; there is one for each adapter that was trained on the person's records."""

    __tablename__ = "opendsr_jobs"

    request_id: Mapped[str] = mapped_column(ForeignKey("opendsr_requests.id"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("unlearn_jobs.id"), primary_key=True, unique=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))


class OpenDsrCallback(Base):
    """Who is told when the status of a request changes, and the status that was told last.

    A receipt tells that a request is pending. Nothing comes after `completed`.
    """

    __tablename__ = "opendsr_callbacks"
    __table_args__ = (Index("ix_opendsr_callbacks_open", "request_id", postgresql_where=text("told <> 'completed'")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    request_id: Mapped[str] = mapped_column(ForeignKey("opendsr_requests.id"))
    url: Mapped[str]
    told: Mapped[str] = mapped_column(server_default="pending")
