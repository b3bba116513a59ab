"""Adapters and their immutable versions."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, UniqueConstraint, false, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.kit.db import Base


class Adapter(Base):
    """A named LoRA series on one base model. `head` is the number of its newest ready version.

    A `fresh` one is begun by an unlearn job, to remove what the base model itself knows: so that the base is no
    measure of never having seen the records. Until such a job succeeds it has no version, and head 0.

    The training set is what the head was trained on, without what released jobs have unlearned since; `recipe` is
    how. `unmatched_records` counts records that released jobs have unlearned without finding them in it: training
    anew would bring those back.
    """

    __tablename__ = "adapters"
    __table_args__ = (
        UniqueConstraint("tenant_id", "name"),
        CheckConstraint("training_set_id IS NULL OR recipe IS NOT NULL", name="training_set_has_recipe"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    base_model_id: Mapped[str] = mapped_column(ForeignKey("base_models.id"))
    default_retain_set_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    name: Mapped[str]
    head: Mapped[int]
    fresh: Mapped[bool] = mapped_column(default=False, server_default=false())
    training_set_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"), index=True)
    recipe: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    unmatched_records: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AdapterVersion(Base):
    """One immutable version: its PEFT configuration, and the blobs of its weights and of its archive."""

    __tablename__ = "adapter_versions"
    __table_args__ = (
        UniqueConstraint("adapter_id", "number"),
        # A run may register one version, so that a repeated task cannot register a second.
        UniqueConstraint("run_id"),
        CheckConstraint("status IN ('ready', 'superseded', 'purged')", name="status"),
        Index("ix_adapter_versions_superseded", "superseded_at", postgresql_where=text("status = 'superseded'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    number: Mapped[int]
    status: Mapped[str] = mapped_column(default="ready")
    config: Mapped[dict[str, Any]] = mapped_column(JSONB)
    weights_key: Mapped[str]
    weights_sha256: Mapped[str]
    archive_key: Mapped[str]
    archive_sha256: Mapped[str]
    archive_bytes: Mapped[int] = mapped_column(BigInteger)
    source_version: Mapped[int | None]
    run_id: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    superseded_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]


class AdapterAlias(Base):
    """A name for a version that can be moved to another one."""

    __tablename__ = "adapter_aliases"
    __table_args__ = (UniqueConstraint("adapter_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    version_id: Mapped[str] = mapped_column(ForeignKey("adapter_versions.id"))
    name: Mapped[str]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
