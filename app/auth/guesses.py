"""Wrong keys are limited by the address that they come from.

Nobody guesses 196 random bits; what this saves is the query for each attempt. An address that has tried too often is
refused before its key is looked up, unless the key was good before: who shares the address with a guesser goes on.
"""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass
from functools import lru_cache

from fastapi import Request

from app.auth.limits import RateLimits
from app.kit.problems import RateLimited

MOST = 10_000


@dataclass(frozen=True)
class _Refusal:
    """Why an address is refused, and until when (monotonic seconds)."""

    problem: RateLimited
    until: float


class Guesses:
    """What one process knows of wrong and good keys. Of keys it keeps their hashes."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._refused: dict[str, _Refusal] = {}
        self._good: set[bytes] = set()

    def check(self, address: str, digest: bytes) -> None:
        """Raise RateLimited for an address that has tried too often, unless the key is known to be good."""
        refusal = self._refused.get(address)
        if refusal is None or digest in self._good:
            return
        if refusal.until > time.monotonic():
            raise refusal.problem
        del self._refused[address]

    def succeeded(self, digest: bytes) -> None:
        """Note a good key."""
        if len(self._good) >= MOST:
            self._good.clear()
        self._good.add(digest)

    async def failed(self, address: str) -> None:
        """Count a wrong key. Raises RateLimited when it was one too many."""
        try:
            await self._limits.spend("guesses", address)
        except RateLimited as problem:
            if len(self._refused) >= MOST:
                self._refused.clear()
            seconds = float(problem.headers["Retry-After"])
            self._refused[address] = _Refusal(problem, time.monotonic() + seconds)
            raise


def address_of(request: Request) -> str:
    """Where a request comes from; of an IPv6 address its network of 64 bits, which is what one customer gets."""
    return "unknown" if request.client is None else _network_of(request.client.host)


@lru_cache(maxsize=MOST)
def _network_of(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "unknown"
    if address.version == 4:
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False).network_address)
