"""What endpoints ask for: a session that is one transaction, the caller, the settings, the storage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.audit.record import ACTOR
from app.auth.guard import Guard
from app.auth.keys import key_hash
from app.auth.scopes import Scope
from app.auth.tables import ApiKey
from app.kit.problems import Unauthenticated
from app.kit.storage import Storage
from app.settings import Settings


# Dependencies are asynchronous though most wait for nothing: FastAPI would send each of them through a thread.
async def settings_of(request: Request) -> Settings:
    """The settings of this application."""
    return cast(Settings, request.app.state.settings)


async def storage_of(request: Request) -> Storage:
    """The storage of this application."""
    return cast(Storage, request.app.state.storage)


async def open_session(request: Request) -> AsyncIterator[AsyncSession]:
    """One transaction per request: committed when the endpoint returns, before its answer is sent."""
    sessions = cast("async_sessionmaker[AsyncSession]", request.app.state.sessions)
    # A connection is taken with the first statement, not here.
    async with sessions() as session, session.begin():
        # The middleware has found whose key it is; the audit chain names it.
        session.info[ACTOR] = request.state.api_key
        yield session


SettingsDep = Annotated[Settings, Depends(settings_of)]
StorageDep = Annotated[Storage, Depends(storage_of)]
# Scope "function" ends the transaction before the answer leaves: nobody is told of a thing that was not committed.
SessionDep = Annotated[AsyncSession, Depends(open_session, scope="function")]


async def authenticate(request: Request) -> None:
    """Find whose key a request carries; the tenant and the key's id and scopes go into the request's state.

    Called before anything else is read. A session of its own, closed at once: an upload that takes an hour must not
    hold a connection for it.

    Raises:
        Unauthenticated: no key, or one that is unknown or revoked.
    """
    challenge = {"WWW-Authenticate": "Bearer"}
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Unauthenticated("send an API key as 'Authorization: Bearer lethe_...'", headers=challenge)
    digest = key_hash(key, request.app.state.settings.pepper)
    columns = select(ApiKey.id, ApiKey.scopes, ApiKey.tenant_id)
    statement = columns.where(ApiKey.hash == digest, ApiKey.revoked_at.is_(None))
    async with request.app.state.sessions() as session:
        found = cast("Row[str, list[str], str] | None", (await session.execute(statement)).one_or_none())
    if found is None:
        raise Unauthenticated("this API key is unknown or revoked", headers=challenge)
    request.state.api_key, request.state.scopes, request.state.tenant = found


def requires(*scopes: Scope) -> Dependency:
    """For the ``dependencies`` of a route: the caller needs one of `scopes`, or 403. ``admin`` contains them all.

    The router's ``route_class`` must be `GuardedRoute`, which asks before the body is read.
    """
    return cast(Dependency, Depends(Guard(*scopes)))


async def tenant_of(request: Request) -> str:
    """The caller's tenant, as `app.main` found it. An endpoint that is not behind a key cannot ask for it."""
    return cast(str, request.state.tenant)


TenantDep = Annotated[str, Depends(tenant_of)]
