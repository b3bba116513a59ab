"""The audit chain: entries that are only ever added, and the place of the newest one."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.kit.db import Base


class AuditEntry(Base):
    """One entry of a tenant's chain. Triggers refuse UPDATE, DELETE and TRUNCATE (migration 0002)."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        CheckConstraint("sequence > 0", name="sequence"),
        Index("ix_audit_entries_subject", "tenant_id", "subject_id", "sequence"),
    )

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    action: Mapped[str]
    subject_type: Mapped[str]
    subject_id: Mapped[str]
    actor: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSONB)
    previous_hash: Mapped[str]
    hash: Mapped[str]


class AuditHead(Base):
    """The newest entry of a tenant's chain. Whoever appends locks this row, always as the last one it locks."""

    __tablename__ = "audit_heads"

    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str]
