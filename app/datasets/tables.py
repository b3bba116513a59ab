"""Uploaded records: what is known about them, never the records themselves."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ColumnElement, ForeignKey, LargeBinary, RowMapping, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.data_keys.columns import wrapped_under
from app.datasets.intake import Stored, context
from app.kit.db import Base


def _key_context(row: RowMapping) -> str:
    return context(row["tenant_id"], row["id"], "key")


class Dataset(Base):
    """An encrypted dataset. Purging destroys its data key first, so that no copy of the blob opens again."""

    __tablename__ = "datasets"
    __table_args__ = (
        CheckConstraint("purpose IN ('forget', 'retain', 'holdout', 'training')", name="purpose"),
        CheckConstraint("(purged_at IS NULL) = (wrapped_key IS NOT NULL)", name="purged_without_key"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    purpose: Mapped[str]
    records: Mapped[int] = mapped_column(BigInteger)
    # Not counted by version 0.1.
    duplicates: Mapped[int | None] = mapped_column(BigInteger)
    size: Mapped[int] = mapped_column("bytes", BigInteger)
    # Token statistics by tokenizer and length of sequences, as counted at the upload; null where they were not.
    token_counts: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    sha256: Mapped[str]
    blob_key: Mapped[str]
    digests_key: Mapped[str]
    key_id: Mapped[str]
    wrapped_key: Mapped[bytes | None] = mapped_column(LargeBinary, info=wrapped_under("key_id", _key_context))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    purge_at: Mapped[datetime] = mapped_column(index=True)
    purged_at: Mapped[datetime | None]

    @classmethod
    def of(
        cls, stored: Stored, tenant_id: str, purpose: str, purge_at: datetime | ColumnElement[datetime]
    ) -> Dataset:
        """The row of a dataset whose blobs are in place."""
        return cls(
            id=stored.dataset_id,
            tenant_id=tenant_id,
            purpose=purpose,
            records=stored.records,
            duplicates=stored.duplicates,
            size=stored.bytes,
            sha256=stored.sha256,
            blob_key=stored.blob_key,
            digests_key=stored.digests_key,
            key_id=stored.wrapped.key_id,
            wrapped_key=stored.wrapped.ciphertext,
            purge_at=purge_at,
        )
