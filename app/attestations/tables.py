"""Attestations, and the public half of every key that ever signed one."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, LargeBinary, func
from sqlalchemy.orm import Mapped, mapped_column

from app.kit.db import Base


class SigningKey(Base):
    """A key that signed. It is never removed, so that what it signed can be verified for ever."""

    __tablename__ = "signing_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    public_key: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    retired_at: Mapped[datetime | None]


class Attestation(Base):
    """The signed statement of one release. `envelope` is the file that lies in the archive, byte by byte."""

    __tablename__ = "attestations"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("unlearn_jobs.id"), unique=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"))
    version_id: Mapped[str] = mapped_column(ForeignKey("adapter_versions.id"), unique=True)
    key_id: Mapped[str] = mapped_column(ForeignKey("signing_keys.id"))
    envelope: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
