"""Who calls: asked before anything else of a request is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fastapi import Request

from app.auth.guesses import Guesses, address_of
from app.auth.keys import PREFIX, key_hash, well_formed
from app.auth.oidc import TokenVerifier
from app.auth.repository import live_key, tenant_named
from app.auth.scopes import Scope, allows
from app.kit.problems import Problem, Unauthenticated

CHALLENGE = {"WWW-Authenticate": "Bearer"}
INVALID = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
_SAFE = {"GET", "HEAD"}


class Caller(NamedTuple):
    """Who calls. `id` is that of an API key, or ``oidc:`` and a digest."""

    id: str
    tenant_id: str
    scopes: Sequence[str]


async def authenticate(request: Request) -> None:
    """Find who sends a request; the tenant, the caller's id and scopes go into the request's state.

    Raises:
        Unauthenticated: no key or token, or one that is unknown, revoked or expired.
        RateLimited: too many requests of this caller, or wrong keys from this address.
    """
    caller = await _caller(request)
    request.state.tenant, request.state.api_key, request.state.scopes = caller.tenant_id, caller.id, caller.scopes
    await request.app.state.rate_limits.spend("reads" if request.method in _SAFE else "writes", caller.id)


async def still_allowed(request: Request, scopes: Sequence[Scope]) -> bool:
    """Whether who sent a request might send it now, for answers that go on: its key may have ended meanwhile."""
    try:
        caller = await _caller(request)
    except Problem:
        return False
    return caller.tenant_id == request.state.tenant and allows(caller.scopes, scopes)


async def _caller(request: Request) -> Caller:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("send an API key as 'Authorization: Bearer lethe_...'", headers=CHALLENGE)
    guesses: Guesses = request.app.state.guesses
    tokens: TokenVerifier | None = request.app.state.tokens
    digest, address = key_hash(token, request.app.state.settings.pepper), address_of(request)
    guesses.check(address, digest)
    if tokens is not None and not token.startswith(PREFIX):
        caller = await _by_token(request, tokens, token)
    else:
        caller = await _by_key(request, digest) if well_formed(token) else None
    if caller is None:
        await guesses.failed(address)
        raise Unauthenticated("this API key or token is unknown, revoked or expired", headers=INVALID)
    guesses.succeeded(digest)
    return caller


# Each asks for itself, on a connection that is free again at once: an upload that takes an hour must not hold one.
async def _by_key(request: Request, digest: bytes) -> Caller | None:
    key = await live_key(request.app.state.reads, digest)
    if key is None:
        return None
    if key.use_unwritten:
        request.app.state.last_use.note(key.id)
    return Caller(key.id, key.tenant_id, key.scopes)


async def _by_token(request: Request, tokens: TokenVerifier, token: str) -> Caller | None:
    identity = await tokens.verify(token)
    if identity is None:
        return None
    async with request.app.state.sessions() as session:
        tenant_id = await tenant_named(session, identity.tenant)
    return None if tenant_id is None else Caller(identity.id, tenant_id, identity.scopes)
