"""How many requests a caller may make: counted in Redis, a few at a time.

A process takes requests from a caller's share in small batches and gives them out itself, so that most requests ask
nobody. With a limit below two hundred the batch is one, and the count exact; above, a caller may be refused up to one
percent per process early, never late. Redis only counts: while it is away, everything goes through.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import structlog
from limits import RateLimitItem, parse
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import BlockingConnectionPool
from redis.exceptions import RedisError

from app.kit.problems import RateLimited
from app.settings import Settings

Kind = Literal["reads", "writes", "guesses"]
BATCHES = 100
# Seconds: what is left of a batch is dropped after a while; Redis that does not answer is left alone for a while.
BATCH_SECONDS = 2.0
TIMEOUT, PAUSE = 0.25, 5.0
MOST_SHARES = 10_000
log = structlog.get_logger(__name__)


@dataclass
class _Share:
    """Requests that this process has taken for a caller and not given out yet."""

    left: int = 0
    until: float = 0.0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class RateLimits:
    """The limits of one process.

    Args:
        redis_url: where they are counted.
        rates: how many of each kind, such as ``{"reads": "1200/minute"}``; an empty one is no limit.
    """

    def __init__(self, redis_url: str, rates: Mapping[Kind, str]) -> None:
        self._pool = BlockingConnectionPool.from_url(
            redis_url, max_connections=20, timeout=TIMEOUT, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT
        )
        storage = RedisStorage(
            f"async+{redis_url}",
            implementation="redispy",
            key_prefix="lethe",
            connection_pool=self._pool,  # type: ignore[arg-type] # as documented, though not as annotated
        )
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._items = {kind: parse(rate) for kind, rate in rates.items() if rate}
        self._shares: dict[tuple[Kind, str], _Share] = {}
        self._away, self._ask_again_at = False, 0.0

    @classmethod
    def of(cls, settings: Settings) -> RateLimits:
        """Those that are set."""
        rates: dict[Kind, str] = {
            "reads": settings.rate_limit,
            "writes": settings.rate_limit_writes,
            "guesses": settings.rate_limit_guesses,
        }
        return cls(settings.redis_url.get_secret_value(), rates)

    async def spend(self, kind: Kind, who: str) -> None:
        """Count one request of a caller. Raises RateLimited, which says when to come again."""
        item = self._items.get(kind)
        if item is None or self._ask_again_at > time.monotonic():
            return
        share = self._share(kind, who)
        try:
            async with share.lock:
                allowed = await self._take(item, share, kind, who)
            if not allowed:
                raise await self._refusal(item, kind, who)
        except (RedisError, OSError) as error:
            self._leave_alone(error)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.disconnect()

    def _share(self, kind: Kind, who: str) -> _Share:
        if len(self._shares) >= MOST_SHARES:
            now = time.monotonic()
            self._shares = {key: share for key, share in self._shares.items() if share.until > now}
        return self._shares.setdefault((kind, who), _Share())

    async def _take(self, item: RateLimitItem, share: _Share, kind: Kind, who: str) -> bool:
        if share.left and share.until > time.monotonic():
            share.left -= 1
            return True
        batch = max(1, item.amount // BATCHES)
        for cost in (batch, 1) if batch > 1 else (1,):
            if await self._limiter.hit(item, kind, who, cost=cost):
                share.left, share.until = cost - 1, time.monotonic() + BATCH_SECONDS
                self._away = False
                return True
        return False

    async def _refusal(self, item: RateLimitItem, kind: Kind, who: str) -> RateLimited:
        """The answer, with the header fields of draft-ietf-httpapi-ratelimit-headers."""
        reset_at, _ = await self._limiter.get_window_stats(item, kind, who)
        seconds = max(1, math.ceil(reset_at - time.time()))
        headers = {
            "Retry-After": str(seconds),
            "RateLimit-Policy": f'"{kind}";q={item.amount};w={item.get_expiry()}',
            "RateLimit": f'"{kind}";r=0;t={seconds}',
        }
        return RateLimited(f"more than {item.amount} {kind} in {item.get_expiry()} seconds", headers=headers)

    def _leave_alone(self, error: Exception) -> None:
        if not self._away:
            log.warning("requests are not limited: redis is away", error=type(error).__name__)
        self._away, self._ask_again_at = True, time.monotonic() + PAUSE
