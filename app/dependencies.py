"""What endpoints ask for: a session that is one transaction, the caller, the settings, the storage."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, cast

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.audit.record import ACTOR
from app.auth.guard import Guard
from app.auth.scopes import Scope
from app.kit.driver import Reads
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


async def reads_of(request: Request) -> Reads:
    """Connections for questions of one statement."""
    return cast(Reads, request.app.state.reads)


SettingsDep = Annotated[Settings, Depends(settings_of)]
StorageDep = Annotated[Storage, Depends(storage_of)]
ReadsDep = Annotated[Reads, Depends(reads_of)]
# Scope "function" ends the transaction before the answer leaves: nobody is told of a thing that was not committed.
SessionDep = Annotated[AsyncSession, Depends(open_session, scope="function")]


def requires(*scopes: Scope) -> Dependency:
    """For the ``dependencies`` of a route: the caller needs one of `scopes`, or 403. ``admin`` contains them all.

    The router's ``route_class`` must be `GuardedRoute`, which asks before the body is read.
    """
    return cast(Dependency, Depends(Guard(*scopes)))


async def tenant_of(request: Request) -> str:
    """The caller's tenant. An endpoint that is not behind a key cannot ask for it."""
    return cast(str, request.state.tenant)


TenantDep = Annotated[str, Depends(tenant_of)]
