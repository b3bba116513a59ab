"""Who is told of events, the secrets that sign what they are told, and everything that was sent."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, Index, LargeBinary, RowMapping, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.data_keys.columns import wrapped_under
from app.kit.db import Base
from app.webhooks.signing import context_of


def _context(row: RowMapping) -> str:
    return context_of(row["tenant_id"], row["id"])


class WebhookEndpoint(Base):
    """A URL that is told of a tenant's events. `events` empty means all of them."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"), index=True)
    url: Mapped[str]
    events: Mapped[list[str]] = mapped_column(ARRAY(Text))
    signatures: Mapped[list[str]] = mapped_column(ARRAY(Text))
    enabled: Mapped[bool] = mapped_column(default=True)
    disabled_reason: Mapped[str | None]
    last_success_at: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WebhookSecret(Base):
    """What signs for an endpoint, or, without one, for the `callback_url` of the tenant's jobs.

    The HMAC secret and the Ed25519 seed are wrapped by the key ring. The current secret has no `expires_at`; the one
    before signs along until its own.
    """

    __tablename__ = "webhook_secrets"
    __table_args__ = (
        Index(
            "uq_webhook_secrets_current",
            "tenant_id",
            text("coalesce(endpoint_id, '')"),
            unique=True,
            postgresql_where=text("expires_at IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    endpoint_id: Mapped[str | None] = mapped_column(
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), index=True
    )
    key_id: Mapped[str]
    wrapped_key: Mapped[bytes] = mapped_column(LargeBinary, info=wrapped_under("key_id", _context))
    public_key: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    expires_at: Mapped[datetime | None]


class WebhookDelivery(Base):
    """One event for one receiver, written in the transaction that makes it true; sent by the light worker.

    Without an endpoint it goes to the `callback_url` of the job `subject_id`, or to a callback of the OpenDSR request
    `subject_id`, which is then the `lane`. `attempts` is the fencing token of who
    sends; `tries` counts the steps of the schedule that were taken. Of one `lane` at most one is sent at a time.
    """

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        CheckConstraint("status IN ('pending', 'succeeded', 'failed')", name="status"),
        Index("ix_webhook_deliveries_due", "next_at", postgresql_where=text("status = 'pending'")),
        Index("ix_webhook_deliveries_sending", "lane", postgresql_where=text("lease_until IS NOT NULL")),
        Index("ix_webhook_deliveries_list", "tenant_id", "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(ForeignKey("tenants.id"))
    endpoint_id: Mapped[str | None] = mapped_column(
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), index=True
    )
    lane: Mapped[str]
    type: Mapped[str]
    subject_id: Mapped[str]
    status: Mapped[str] = mapped_column(server_default="pending")
    attempts: Mapped[int] = mapped_column(server_default="0")
    tries: Mapped[int] = mapped_column(server_default="0")
    next_at: Mapped[datetime | None] = mapped_column(server_default=func.now())
    lease_until: Mapped[datetime | None]
    response_status: Mapped[int | None]
    error: Mapped[str | None]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    queued_at: Mapped[datetime] = mapped_column(server_default=func.now())
    finished_at: Mapped[datetime | None]
