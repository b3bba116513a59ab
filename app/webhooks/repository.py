"""Queries on endpoints, their secrets and deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import Row, Select, delete, func, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncSession

from app.audit.actions import Action, SubjectType
from app.audit.record import append
from app.kit.pagination import newest_first, split_page
from app.webhooks.delivery import give_up_pending
from app.webhooks.tables import WebhookDelivery, WebhookEndpoint, WebhookSecret

EndpointRow = Row[WebhookEndpoint, bytes]


class WebhookRepository:
    """Webhooks of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def _endpoints(self) -> Select[WebhookEndpoint, bytes]:
        """Endpoint and current public key."""
        return (
            select(WebhookEndpoint, WebhookSecret.public_key)
            .join(WebhookSecret, WebhookSecret.endpoint_id == WebhookEndpoint.id)
            .where(WebhookEndpoint.tenant_id == self._tenant_id, WebhookSecret.expires_at.is_(None))
        )

    async def endpoint(self, endpoint_id: str, *, lock: bool = False) -> EndpointRow | None:
        """An endpoint; `lock` keeps others from changing it until the transaction ends."""
        statement = self._endpoints().where(WebhookEndpoint.id == endpoint_id)
        if lock:
            statement = statement.with_for_update(of=WebhookEndpoint, key_share=True)
        return (await self._session.execute(statement)).one_or_none()

    async def page(self, limit: int, cursor: str | None) -> tuple[list[EndpointRow], bool]:
        """One page, newest first, and whether more follow."""
        statement = newest_first(self._endpoints(), WebhookEndpoint.created_at, WebhookEndpoint.id, limit, cursor)
        return split_page((await self._session.execute(statement)).all(), limit)

    async def count(self) -> int:
        """How many endpoints there are."""
        mine = select(func.count()).where(WebhookEndpoint.tenant_id == self._tenant_id)
        return (await self._session.scalars(mine)).one()

    async def add(self, endpoint: WebhookEndpoint, secret: WebhookSecret) -> None:
        """Store a new endpoint with its secret."""
        self._session.add(endpoint)
        await self._session.flush()
        self._session.add(secret)
        await self._session.flush()
        await self._session.refresh(endpoint)

    async def delete(self, endpoint: WebhookEndpoint) -> None:
        """Remove an endpoint, its secrets and its deliveries."""
        await self._session.execute(
            delete(WebhookEndpoint).where(
                WebhookEndpoint.id == endpoint.id, WebhookEndpoint.tenant_id == self._tenant_id
            )
        )

    async def give_up_pending(self, endpoint_id: str) -> None:
        """End the deliveries of an endpoint that is told nothing any more."""
        await self._session.execute(give_up_pending(endpoint_id))

    async def callback_key(self) -> WebhookSecret | None:
        """What signs for the callback URLs of jobs now."""
        return await self._session.scalar(self._secrets(None).where(WebhookSecret.expires_at.is_(None)))

    async def ensure_callback_key(self, secret: WebhookSecret) -> None:
        """Store the tenant's first callback key, unless it has one."""
        columns = ("id", "tenant_id", "key_id", "wrapped_key", "public_key")
        values = {name: getattr(secret, name) for name in columns}
        await self._session.execute(postgresql.insert(WebhookSecret).values(values).on_conflict_do_nothing())

    async def replace_secret(self, secret: WebhookSecret, overlap: timedelta) -> None:
        """Make a secret the current one; the one before signs along for `overlap`, those before it no more."""
        mine = WebhookSecret.tenant_id == self._tenant_id
        same = WebhookSecret.endpoint_id.is_not_distinct_from(secret.endpoint_id)
        await self._session.execute(delete(WebhookSecret).where(mine, same, WebhookSecret.expires_at.is_not(None)))
        current = update(WebhookSecret).where(mine, same, WebhookSecret.expires_at.is_(None))
        await self._session.execute(current.values(expires_at=func.now() + overlap))
        self._session.add(secret)
        await self._session.flush()
        await self._session.refresh(secret)

    def _secrets(self, endpoint_id: str | None) -> Select[WebhookSecret]:
        return select(WebhookSecret).where(
            WebhookSecret.tenant_id == self._tenant_id, WebhookSecret.endpoint_id.is_not_distinct_from(endpoint_id)
        )

    async def deliveries(
        self, limit: int, cursor: str | None, filters: dict[str, str]
    ) -> tuple[Sequence[WebhookDelivery], bool]:
        """One page, newest first, and whether more follow. Filters are columns with their values."""
        mine = select(WebhookDelivery).where(WebhookDelivery.tenant_id == self._tenant_id)
        mine = mine.where(*(getattr(WebhookDelivery, name) == value for name, value in filters.items()))
        statement = newest_first(mine, WebhookDelivery.created_at, WebhookDelivery.id, limit, cursor)
        return split_page((await self._session.scalars(statement)).all(), limit)

    async def delivery(self, delivery_id: str) -> WebhookDelivery | None:
        """A delivery, locked until the transaction ends."""
        return await self._session.scalar(
            select(WebhookDelivery)
            .where(WebhookDelivery.tenant_id == self._tenant_id, WebhookDelivery.id == delivery_id)
            .with_for_update()
        )

    async def add_delivery(self, delivery: WebhookDelivery) -> None:
        """Store a new delivery."""
        self._session.add(delivery)
        await self._session.flush()
        await self._session.refresh(delivery)

    async def queue_again(self, delivery: WebhookDelivery) -> None:
        """Have an ended delivery sent again, with the whole schedule before it."""
        now = func.now()
        delivery.status, delivery.tries, delivery.finished_at = "pending", 0, None
        await self._session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.tenant_id == self._tenant_id, WebhookDelivery.id == delivery.id)
            .values(next_at=now, queued_at=now, lease_until=None)
        )
        await self._session.flush()
        await self._session.refresh(delivery)

    async def refresh(self, endpoint: WebhookEndpoint) -> None:
        """Write what was changed."""
        await self._session.flush()
        await self._session.refresh(endpoint)

    def record(self, action: Action, kind: SubjectType, subject_id: str, **data: object) -> None:
        """Have the audit chain say so once the transaction commits."""
        append(self._session.sync_session, self._tenant_id, action, kind, subject_id, data)
