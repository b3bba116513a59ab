"""Who calls: asked before anything else of a request is read."""

from __future__ import annotations

from fastapi import Request

from app.auth.guesses import Guesses, address_of
from app.auth.keys import key_hash, well_formed
from app.auth.repository import LiveKey, live_key
from app.kit.problems import Unauthenticated

_SAFE = {"GET", "HEAD"}
CHALLENGE = {"WWW-Authenticate": "Bearer"}


async def authenticate(request: Request) -> None:
    """Find whose key a request carries; the tenant and the key's id and scopes go into the request's state.

    Raises:
        Unauthenticated: no key, or one that is unknown, revoked or expired.
        RateLimited: too many requests with this key, or wrong keys from this address.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated("send an API key as 'Authorization: Bearer lethe_...'", headers=CHALLENGE)
    key = await _live_key(request, token)
    await request.app.state.rate_limits.spend("reads" if request.method in _SAFE else "writes", key.id)
    request.state.tenant, request.state.api_key, request.state.scopes = key.tenant_id, key.id, key.scopes
    if key.use_unwritten:
        request.app.state.last_use.note(key.id)


async def _live_key(request: Request, token: str) -> LiveKey:
    guesses: Guesses = request.app.state.guesses
    digest, address = key_hash(token, request.app.state.settings.pepper), address_of(request)
    guesses.check(address, digest)
    key = await _look_up(request, digest) if well_formed(token) else None
    if key is None:
        await guesses.failed(address)
        raise Unauthenticated("this API key is unknown, revoked or expired", headers=CHALLENGE)
    guesses.succeeded(digest)
    return key


async def _look_up(request: Request, digest: bytes) -> LiveKey | None:
    # A session of its own, closed at once: an upload that takes an hour must not hold a connection for it.
    async with request.app.state.sessions() as session:
        return await live_key(session, digest)
