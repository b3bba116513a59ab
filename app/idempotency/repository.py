"""Queries on accepted requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import ColumnElement, and_, delete, func, literal, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from app.idempotency.tables import AcceptedRequest

_LOCKS = 0x1DE0  # the class of these advisory locks among all of the service's


@dataclass(frozen=True)
class Answer:
    """What a request was answered."""

    status: int
    location: str
    body: str
    # Such as Retry-After: of the moment, so not kept.
    headers: Mapping[str, str] = field(default_factory=dict)


class AcceptedRequestRepository:
    """Accepted requests of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def claim(self, key: bytes) -> tuple[bool, AcceptedRequest | None]:
        """Whether this transaction is the only one at work under the key, and the request that was accepted before.

        Waits for nobody: the other transaction may hold the key for as long as it likes.
        """
        locked = func.pg_try_advisory_xact_lock(_LOCKS, func.hashtext(self._tenant_id + key.hex())).label("locked")
        alone = select(locked).cte("alone").prefix_with("MATERIALIZED")
        found = select(alone.c.locked, AcceptedRequest).outerjoin_from(
            alone, AcceptedRequest, and_(self._is(key), AcceptedRequest.expires_at > func.now())
        )
        row = (await self._session.execute(found)).one()
        return row[0], row[1]

    async def add(self, key: bytes, request: bytes, answer: Answer, lifetime: timedelta) -> bool:
        """Keep an answer. False when somebody else kept one meanwhile."""
        values = {
            "request_digest": request,
            "status": answer.status,
            "location": answer.location,
            "body": answer.body,
            "created_at": func.now(),
            "expires_at": func.now() + literal(lifetime),
        }
        statement = (
            insert(AcceptedRequest)
            .values(tenant_id=self._tenant_id, key_digest=key, **values)
            .on_conflict_do_update(
                index_elements=["tenant_id", "key_digest"],
                set_=values,
                where=AcceptedRequest.expires_at <= func.now(),
            )
            .returning(true())
        )
        return (await self._session.execute(statement)).one_or_none() is not None

    def _is(self, key: bytes) -> ColumnElement[bool]:
        return and_(AcceptedRequest.tenant_id == self._tenant_id, AcceptedRequest.key_digest == key)


def sweep(session: Session, limit: int) -> int:
    """Delete answers whose time is over, of all tenants; at most `limit`. Answers how many."""
    keys = (AcceptedRequest.tenant_id, AcceptedRequest.key_digest)
    over = (
        select(*keys).where(AcceptedRequest.expires_at <= func.now()).limit(limit).with_for_update(skip_locked=True)
    )
    found = session.execute(over).all()
    for tenant_id, key in found:
        session.execute(delete(AcceptedRequest).where(keys[0] == tenant_id, keys[1] == key))
    return len(found)
