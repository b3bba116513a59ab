"""Limits on requests, on wrong keys and on live jobs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from redis.asyncio import Redis
from sqlalchemy import Engine

from app.auth.guesses import address_of
from app.auth.keys import new_key
from app.auth.limits import RateLimits
from app.kit.problems import RateLimited
from app.main import create_app
from app.settings import Settings
from tests.app.conftest import caller, make_key, post_adapter, post_job

NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture
def settings(settings: Settings, redis_clean_url: str) -> Settings:
    """Small limits, which are exact."""
    assert redis_clean_url
    rates = {"rate_limit": "3/minute", "rate_limit_writes": "2/minute", "rate_limit_guesses": "3/minute"}
    return settings.model_copy(update=rates)


@pytest.fixture
async def roomy(settings: Settings) -> AsyncIterator[FastAPI]:
    """An application without limits on requests, and with two live jobs per tenant."""
    free = {"rate_limit": "", "rate_limit_writes": "", "rate_limit_guesses": "", "max_live_jobs": 2}
    application = create_app(settings.model_copy(update=free))
    async with application.router.lifespan_context(application):
        yield application


async def count(limits: RateLimits, who: str, tries: int) -> int:
    """How many of so many reads are let through."""
    passed = 0
    for _ in range(tries):
        try:
            await limits.spend("reads", who)
            passed += 1
        except RateLimited:
            pass
    return passed


async def test_a_key_over_its_limit_is_told_when_to_come_again(client: httpx.AsyncClient) -> None:
    assert [(await client.get("/datasets")).status_code for _ in range(3)] == [200, 200, 200]
    response = await client.get("/datasets")
    assert (response.status_code, response.json()["code"]) == (429, "rate_limited")
    seconds = response.headers["retry-after"]
    assert 1 <= int(seconds) <= 60
    assert response.headers["ratelimit-policy"] == '"reads";q=3;w=60'
    assert response.headers["ratelimit"] == f'"reads";r=0;t={seconds}'


async def test_another_key_other_kinds_and_public_calls_go_on(
    app: FastAPI, client: httpx.AsyncClient, engine: Engine
) -> None:
    for _ in range(4):
        await client.get("/datasets")
    body = {"name": "x", "scopes": ["jobs:read"]}
    assert [(await client.post("/api-keys", json=body)).status_code for _ in range(3)] == [201, 201, 429]
    assert [(await client.get("/livez")).status_code for _ in range(5)] == [200] * 5
    async with caller(app, make_key(engine, "ours")) as other:
        assert (await other.get("/datasets")).status_code == 200


async def test_nothing_of_a_body_is_read_beyond_the_limit(client: httpx.AsyncClient) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"x"

    headers = {"Content-Type": "application/jsonl"}
    for _ in range(2):
        await client.post("/unlearn-jobs")
    response = await client.post("/datasets?purpose=forget", content=body(), headers=headers)
    assert (response.status_code, read) == (429, 0)


async def test_large_limits_are_spent_in_batches_and_never_exceeded_by_two_processes(redis_clean_url: str) -> None:
    one, two = (RateLimits(redis_clean_url, {"reads": "500/hour"}) for _ in range(2))
    async with Redis.from_url(redis_clean_url) as redis:
        await redis.config_resetstat()
        passed = await count(one, "key_1", 300) + await count(two, "key_1", 100)
        statistics: dict[str, Any] = await redis.info("commandstats")
    assert passed == 400
    assert statistics["cmdstat_evalsha"]["calls"] <= 82
    assert 95 <= await count(one, "key_1", 100) + await count(two, "key_1", 100) <= 100
    await one.close()
    await two.close()


async def test_without_redis_requests_go_through_and_the_log_says_so_once(
    settings: Settings, engine: Engine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.auth.limits.PAUSE", 0.0)
    limits = RateLimits(NOWHERE, {"reads": "3/minute"})
    assert await count(limits, "key_1", 5) == 5
    await limits.close()
    assert capsys.readouterr().out.count("redis is away") == 1


async def test_redis_that_is_away_is_not_asked_for_every_request() -> None:
    limits = RateLimits(NOWHERE, {"reads": "3/minute"})
    asked = 0

    async def hit(*_given: object, **_named: object) -> bool:
        nonlocal asked
        asked += 1
        raise ConnectionError

    limits._limiter.hit = hit  # type: ignore[method-assign]
    assert await count(limits, "key_1", 5) == 5
    assert asked == 1
    await limits.close()


async def test_wrong_keys_are_refused_by_address_and_known_good_ones_go_on(
    app: FastAPI, client: httpx.AsyncClient, engine: Engine
) -> None:
    assert (await client.get("/datasets")).status_code == 200
    wrong = []
    for _ in range(5):
        async with caller(app, new_key()) as guesser:
            wrong.append(await guesser.get("/datasets"))
    assert [response.status_code for response in wrong] == [401, 401, 401, 429, 429]
    assert int(wrong[-1].headers["retry-after"]) >= 1
    assert (await client.get("/datasets")).status_code == 200
    # Not looked up any more, or else the right one of many guesses would show.
    async with caller(app, make_key(engine, "ours")) as unseen:
        assert (await unseen.get("/datasets")).status_code == 429


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("testclient", "unknown"),
        (None, "unknown"),
    ],
)
def test_an_address_of_ipv6_counts_by_its_network(host: str | None, address: str) -> None:
    client = None if host is None else (host, 1)
    assert address_of(Request({"type": "http", "client": client, "headers": []})) == address


async def test_a_tenant_has_so_many_live_jobs_and_no_more(
    roomy: FastAPI, engine: Engine, model_directory: Any, foreign: httpx.AsyncClient
) -> None:

    async with caller(roomy, make_key(engine, "ours")) as client:
        await client.post("/base-models", json={"name": "acme/tiny", "source": model_directory.name})
        await post_adapter(client)
        jobs = [await post_job(client) for _ in range(3)]
        assert [job.status_code for job in jobs] == [202, 202, 429]
        assert jobs[2].json()["code"] == "quota_exceeded"
        assert int(jobs[2].headers["retry-after"]) >= 1
        first = jobs[0].json()["id"]
        await client.post(f"/unlearn-jobs/{first}/cancel")
        assert (await post_job(client)).status_code == 202
        assert (await client.post(f"/unlearn-jobs/{first}/retry")).status_code == 429
    assert (await post_job(foreign)).status_code == 422
