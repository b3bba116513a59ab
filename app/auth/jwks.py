"""The public keys of an identity provider: fetched over https, kept, and fetched again when a key is unknown."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import structlog
from jwt import PyJWK
from jwt.exceptions import PyJWTError

from app.kit.problems import Unavailable
from app.kit.urls import is_safe_url

ALGORITHMS = ("RS256", "ES256", "EdDSA")
# Seconds. Whoever sends tokens with made-up key ids cannot have the provider asked more often than that.
MIN_INTERVAL, LIFETIME = 30.0, 600.0
# While the provider is away, the keys that it listed last are good for a day.
MAX_AGE = 24 * 3600.0
MAX_BYTES = 256 * 1024
TIMEOUT = httpx.Timeout(5.0)
log = structlog.get_logger(__name__)


class JwksError(Exception):
    """The provider's answer cannot be used. The text quotes nothing of it."""


class KeySet:
    """The signing keys of one issuer, by their ids."""

    def __init__(self, issuer: str) -> None:
        self._issuer = issuer
        self._keys: dict[str, PyJWK] = {}
        self._fetched_at = self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    async def key(self, key_id: str) -> PyJWK | None:
        """The key with that id; None where the provider has none.

        Raises:
            Unavailable: no keys are known, and the provider cannot be asked.
        """
        if key_id not in self._keys or self._older_than(LIFETIME, self._fetched_at):
            await self._refresh(key_id)
        if not self._keys or self._older_than(MAX_AGE, self._fetched_at):
            raise Unavailable("the identity provider cannot be asked for its keys", headers={"Retry-After": "30"})
        return self._keys.get(key_id)

    def _older_than(self, seconds: float, moment: float) -> bool:
        return time.monotonic() - moment > seconds

    async def _refresh(self, key_id: str) -> None:
        async with self._lock:
            # Who waited for the lock may find what was needed.
            fresh = key_id in self._keys and not self._older_than(LIFETIME, self._fetched_at)
            if fresh or not self._older_than(MIN_INTERVAL, self._tried_at):
                return
            self._tried_at = time.monotonic()
            try:
                self._keys = await fetch_keys(self._issuer)
                self._fetched_at = self._tried_at
            except (httpx.HTTPError, JwksError) as error:
                log.warning("identity provider not asked", error=type(error).__name__)


async def fetch_keys(issuer: str) -> dict[str, PyJWK]:
    """The issuer's keys, found by OpenID Connect Discovery 1.0.

    Raises:
        JwksError: the answer is no such document, or names another issuer or an unsafe place.
        httpx.HTTPError: no answer, or one that says no.
    """
    async with httpx.AsyncClient(timeout=TIMEOUT, follow_redirects=False) as client:
        about = await _get(client, issuer.rstrip("/") + "/.well-known/openid-configuration")
        if about.get("issuer") != issuer:
            raise JwksError("the document names another issuer")
        place = about.get("jwks_uri")
        if not isinstance(place, str) or not is_safe_url(place):
            raise JwksError("the document names no safe place for keys")
        listed = (await _get(client, place)).get("keys")
    if not isinstance(listed, list):
        raise JwksError("the document lists no keys")
    return {key.key_id: key for key in map(_usable, listed) if key is not None and key.key_id}


async def _get(client: httpx.AsyncClient, url: str) -> dict[str, Any]:
    async with client.stream("GET", url) as response:
        response.raise_for_status()
        if response.is_redirect:
            raise JwksError("redirects are not followed")
        content = b""
        async for chunk in response.aiter_bytes():
            content += chunk
            if len(content) > MAX_BYTES:
                raise JwksError("the document is too large")
    try:
        document = httpx.Response(200, content=content).json()
    except ValueError:
        raise JwksError("the document is no JSON") from None
    if not isinstance(document, dict):
        raise JwksError("the document is no object")
    return document


def _usable(listed: Any) -> PyJWK | None:  # noqa: ANN401 - whatever the provider lists
    """A key that may verify tokens: public, of an allowed algorithm, long enough."""
    if not isinstance(listed, dict) or listed.get("use", "sig") != "sig" or "d" in listed:
        return None
    try:
        key = PyJWK(listed)
        prepared = key.Algorithm.prepare_key(key.key)
    except (PyJWTError, ValueError, TypeError):
        return None
    if key.algorithm_name not in ALGORITHMS or key.Algorithm.check_key_length(prepared):
        return None
    return key
