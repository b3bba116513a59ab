"""``/livez`` and ``/readyz``: is the process up, and can it do its work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any, Literal

import structlog
from anyio import to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import func, select, text

from app.database import schema_head
from app.jobs.tables import HEARTBEAT_AGE, WorkerHeartbeat
from app.outbox import GPU_QUEUE, LIGHT_QUEUE

router = APIRouter(tags=["health"])
log = structlog.get_logger(__name__)


class Live(BaseModel):
    """The process answers."""

    status: Literal["live"] = "live"


class Ready(BaseModel):
    """What each part says of itself: "ok", or why not."""

    status: Literal["ready", "not_ready"]
    checks: dict[str, str]
    workers: dict[str, int]


@router.get("/livez", operation_id="live")
async def live() -> Live:
    """The process answers."""
    return Live()


@router.get("/readyz", operation_id="ready", responses={503: {"model": Ready}})
async def ready(request: Request, response: Response) -> Ready:
    """Whether requests can be served: 503 with the part that is down.

    Missing workers do not make the service unready, since requests are kept until one comes.
    """
    parts: dict[str, Callable[[Request], Awaitable[str]]] = {
        "postgres": _postgres,
        "schema": _schema,
        "redis": _redis,
        "storage": _storage,
    }
    checks = {name: await _guarded(name, check, request) for name, check in parts.items()}
    fine = all(answer == "ok" for answer in checks.values())
    response.status_code = HTTPStatus.OK if fine else HTTPStatus.SERVICE_UNAVAILABLE
    workers = await _workers(request) if checks["schema"] == "ok" else {}
    return Ready(status="ready" if fine else "not_ready", checks=checks, workers=workers)


async def _guarded(name: str, check: Callable[[Request], Awaitable[str]], request: Request) -> str:
    try:
        return await check(request)
    except Exception as error:  # every failure is an answer here
        # The error's text may hold a URL with a password.
        log.warning("not ready", part=name, error=type(error).__name__)
        return f"unreachable ({type(error).__name__})"


async def _postgres(request: Request) -> str:
    await _scalar(request, text("SELECT 1"))
    return "ok"


async def _schema(request: Request) -> str:
    level = await _scalar(request, text("SELECT version_num FROM alembic_version"))
    wanted = schema_head()
    return "ok" if level == wanted else f"at migration {level}, needs {wanted}; run `lethe migrate`"


async def _redis(request: Request) -> str:
    url = request.app.state.settings.redis_url.get_secret_value()
    async with Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2) as redis:
        await redis.ping()
    return "ok"


async def _storage(request: Request) -> str:
    await to_thread.run_sync(request.app.state.storage.check)
    return "ok"


async def _workers(request: Request) -> dict[str, int]:
    """Live workers per queue."""
    recent = WorkerHeartbeat.seen_at > func.now() - HEARTBEAT_AGE
    statement = select(WorkerHeartbeat.queue, func.count()).where(recent).group_by(WorkerHeartbeat.queue)
    async with request.app.state.sessions() as session:
        found = dict((await session.execute(statement)).all())
    return {queue: found.get(queue, 0) for queue in (GPU_QUEUE, LIGHT_QUEUE)}


async def _scalar(request: Request, statement: Any) -> Any:  # noqa: ANN401 - any single value
    async with request.app.state.sessions() as session:
        return await session.scalar(statement)
