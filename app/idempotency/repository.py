"""Queries on accepted requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import Integer, Interval, LargeBinary, Text, and_, bindparam, delete, func, select, true
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from app.idempotency.tables import AcceptedRequest
from app.kit.driver import Asked, Prepared

_LOCKS = 0x1DE0  # the class of these advisory locks among all of the service's


@dataclass(frozen=True)
class Answer:
    """What a request was answered."""

    status: int
    location: str
    body: str
    # Such as Retry-After: of the moment, so not kept.
    headers: Mapping[str, str] = field(default_factory=dict)


class Accepted(NamedTuple):
    """A request that was accepted before."""

    request_digest: bytes
    status: int
    location: str
    body: str


class AcceptedRequestRepository:
    """Accepted requests of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    async def claim(self, key: bytes) -> Asked:
        """Claim a key for this transaction; `claimed` reads what came of it.

        Waits for nobody: the other transaction may hold the key for as long as it likes.
        """
        return await _CLAIM.ask(self._session, tenant=self._tenant_id, key=key, lock=self._tenant_id + key.hex())

    async def claimed(self, claim: Asked) -> tuple[bool, Accepted | None]:
        """Whether this transaction is alone at work under the key, and what was accepted under it before."""
        alone, *before = await claim.one()
        return alone, Accepted(*before) if before[0] is not None else None

    async def add(self, key: bytes, request: bytes, answer: Answer, lifetime: timedelta) -> Asked:
        """Keep an answer. No row comes back when somebody else kept one meanwhile."""
        given = {"status": answer.status, "location": answer.location, "body": answer.body}
        values = {"tenant": self._tenant_id, "key": key, "request": request, "lifetime": lifetime, **given}
        return await _ADD.ask(self._session, **values)


def _claim() -> Prepared:
    tenant, key = bindparam("tenant", type_=Text), bindparam("key", type_=LargeBinary)
    mine = (AcceptedRequest.tenant_id == tenant, AcceptedRequest.key_digest == key)
    lock = func.pg_try_advisory_xact_lock(_LOCKS, func.hashtext(bindparam("lock", type_=Text)))
    alone = select(lock.label("locked")).cte("alone").prefix_with("MATERIALIZED")
    answered = (
        AcceptedRequest.request_digest,
        AcceptedRequest.status,
        AcceptedRequest.location,
        AcceptedRequest.body,
    )
    on = and_(*mine, AcceptedRequest.expires_at > func.now())
    return Prepared(select(alone.c.locked, *answered).outerjoin_from(alone, AcceptedRequest, on))


def _add() -> Prepared:
    values = {
        "request_digest": bindparam("request", type_=LargeBinary),
        "status": bindparam("status", type_=Integer),
        "location": bindparam("location", type_=Text),
        "body": bindparam("body", type_=Text),
        "created_at": func.now(),
        "expires_at": func.now() + bindparam("lifetime", type_=Interval),
    }
    owner = {"tenant_id": bindparam("tenant", type_=Text), "key_digest": bindparam("key", type_=LargeBinary)}
    return Prepared(
        insert(AcceptedRequest)
        .values(**owner, **values)
        .on_conflict_do_update(
            index_elements=["tenant_id", "key_digest"],
            set_=values,
            where=AcceptedRequest.expires_at <= func.now(),
        )
        .returning(true().label("kept"))
    )


_CLAIM, _ADD = _claim(), _add()


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
