"""Queries on tenants and API keys."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, LargeBinary, and_, bindparam, func, or_, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.audit.record import append
from app.auth.scopes import ADMIN
from app.auth.tables import ApiKey, Tenant
from app.kit.driver import Prepared, Reads
from app.kit.pagination import newest_first, split_page

LAST_USE_INTERVAL = timedelta(minutes=1)
_UNEXPIRED = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > func.now())
LIVE: ColumnElement[bool] = and_(ApiKey.revoked_at.is_(None), _UNEXPIRED)
_USE_UNWRITTEN = or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < func.now() - LAST_USE_INTERVAL)


class LiveKey(NamedTuple):
    """A key that may be used, and whether its use is to be written down."""

    id: str
    tenant_id: str
    scopes: list[str]
    use_unwritten: bool


async def live_key(reads: Reads, digest: bytes) -> LiveKey | None:
    """The live key with the secret of that hash, whatever its tenant: the one query of authentication."""
    found = await reads.one(_LIVE_KEY, digest=digest)
    return None if found is None else LiveKey(*found)


async def tenant_named(session: AsyncSession, name: str) -> str | None:
    """The id of the tenant with that name."""
    return await session.scalar(select(Tenant.id).where(Tenant.name == name))


def _live_key() -> Prepared:
    digest = bindparam("digest", type_=LargeBinary)
    previous = and_(ApiKey.previous_hash == digest, ApiKey.previous_until > func.now())
    columns = select(ApiKey.id, ApiKey.tenant_id, ApiKey.scopes, _USE_UNWRITTEN.label("use_unwritten"))
    return Prepared(columns.where(or_(ApiKey.hash == digest, previous), LIVE))


_LIVE_KEY = _live_key()


async def write_use(session: AsyncSession, key_id: str) -> None:
    """Note that a key was used now, unless somebody has within the interval."""
    await session.execute(update(ApiKey).where(ApiKey.id == key_id, _USE_UNWRITTEN).values(last_used_at=func.now()))


class ApiKeyRepository:
    """API keys of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._mine = select(ApiKey).where(ApiKey.tenant_id == tenant_id)

    async def by_id(self, key_id: str, *, lock: bool = False) -> ApiKey | None:
        """The key with that id; `lock` keeps others from changing it until the transaction ends."""
        statement = self._mine.where(ApiKey.id == key_id)
        return await self._session.scalar(statement.with_for_update() if lock else statement)

    async def page(self, limit: int, cursor: str | None) -> tuple[list[ApiKey], bool]:
        """One page, newest first, and whether more follow."""
        statement = newest_first(self._mine, ApiKey.created_at, ApiKey.id, limit, cursor)
        return split_page((await self._session.scalars(statement)).all(), limit)

    async def is_live(self, key: ApiKey) -> bool:
        """Whether a key may be used now, by the clock of the database."""
        return await self._session.scalar(self._mine.where(ApiKey.id == key.id, LIVE)) is not None

    async def lock_all(self) -> None:
        """Have other transactions that lock the tenant's keys wait until this one ends."""
        mine = select(Tenant.id).where(Tenant.id == self._tenant_id)
        # Not FOR UPDATE, for which every insert that refers to the tenant would wait.
        await self._session.execute(mine.with_for_update(key_share=True))

    async def has_other_admin(self, key_id: str) -> bool:
        """Whether a live key besides this one has the scope admin."""
        others = self._mine.where(ApiKey.id != key_id, ApiKey.scopes.contains([ADMIN]), LIVE)
        return await self._session.scalar(others.limit(1)) is not None

    async def add(self, key: ApiKey) -> None:
        """Store a new one."""
        self._session.add(key)
        await self._session.flush()
        await self._session.refresh(key)
        append(
            self._session.sync_session,
            self._tenant_id,
            "api_key.created",
            "api_key",
            key.id,
            {"scopes": list(key.scopes)},
        )

    async def revoke(self, key: ApiKey) -> None:
        """End a key, both of its secrets."""
        await self._change(key, revoked_at=func.now(), previous_hash=None, previous_until=None)
        append(self._session.sync_session, self._tenant_id, "api_key.revoked", "api_key", key.id)

    async def rotate(self, key: ApiKey, digest: bytes, grace: timedelta) -> None:
        """Give a key another secret. The one before stays good for `grace`; the one before that ends now."""
        kept, until = (key.hash, func.now() + grace) if grace else (None, None)
        await self._change(key, hash=digest, previous_hash=kept, previous_until=until, rotated_at=func.now())
        data = {"grace_seconds": int(grace.total_seconds())}
        append(self._session.sync_session, self._tenant_id, "api_key.rotated", "api_key", key.id, data)

    async def _change(self, key: ApiKey, **values: object) -> None:
        for name, value in values.items():
            setattr(key, name, value)
        await self._session.flush()
        await self._session.refresh(key)
