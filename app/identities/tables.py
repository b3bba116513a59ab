"""Indexes from identities to records: keyed digests, places and sealed keys, never an identity or a record."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    RowMapping,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.data_keys.columns import sealed_elsewhere, wrapped_under
from app.identities.contexts import context
from app.kit.db import Base


def _key_context(row: RowMapping) -> str:
    return context(row["tenant_id"], row["id"], "key")


class IdentityIndex(Base):
    """An uploaded index. Purging destroys its data key, under which every entry's own key is sealed."""

    __tablename__ = "identity_indexes"
    __table_args__ = (
        CheckConstraint("(purged_at IS NULL) = (wrapped_key IS NOT NULL)", name="purged_without_key"),
        Index("ix_identity_indexes_list", "tenant_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    adapter_id: Mapped[str] = mapped_column(ForeignKey("adapters.id"))
    retain_set_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"), index=True)
    entries: Mapped[int] = mapped_column(BigInteger)
    remaining: Mapped[int] = mapped_column(BigInteger)
    records: Mapped[int] = mapped_column(BigInteger)
    size: Mapped[int] = mapped_column("bytes", BigInteger)
    blob_key: Mapped[str]
    key_id: Mapped[str]
    wrapped_key: Mapped[bytes | None] = mapped_column(LargeBinary, info=wrapped_under("key_id", _key_context))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    purge_at: Mapped[datetime] = mapped_column(index=True)
    purged_at: Mapped[datetime | None]


class IdentityEntry(Base):
    """One line of an index. The key to its records lies here alone: without the row nothing opens them."""

    __tablename__ = "identity_entries"
    __table_args__ = (Index("ix_identity_entries_fingerprints", "fingerprints", postgresql_using="gin"),)

    index_id: Mapped[str] = mapped_column(ForeignKey("identity_indexes.id"), primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    fingerprints: Mapped[list[bytes]] = mapped_column(ARRAY(LargeBinary))
    offset: Mapped[int] = mapped_column(BigInteger)
    size: Mapped[int] = mapped_column("bytes", BigInteger)
    records: Mapped[int]
    sealed_key: Mapped[bytes] = mapped_column(LargeBinary, info=sealed_elsewhere())


class IdentityClaim(Base):
    """A job that unlearns an entry's records; its success destroys the entry."""

    __tablename__ = "identity_claims"
    __table_args__ = (
        ForeignKeyConstraint(
            ["index_id", "number"], ["identity_entries.index_id", "identity_entries.number"], ondelete="CASCADE"
        ),
        Index("ix_identity_claims_entry", "index_id", "number"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("unlearn_jobs.id"), primary_key=True)
    index_id: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
