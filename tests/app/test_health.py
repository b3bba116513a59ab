"""Whether the service says truly how it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import Engine, text

from app.settings import Settings


async def test_a_healthy_service_is_ready_without_a_key(anonymous: httpx.AsyncClient) -> None:
    assert (await anonymous.get("/livez")).json() == {"status": "live"}
    response = await anonymous.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "checks": {"postgres": "ok", "schema": "ok", "redis": "ok", "storage": "ok"},
        "workers": {"gpu": 0, "default": 0},
    }


async def test_workers_count_while_their_heartbeat_is_fresh(anonymous: httpx.AsyncClient, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO worker_heartbeats (name, queue) VALUES ('a', 'gpu'), ('b', 'gpu')"))
        connection.execute(text("UPDATE worker_heartbeats SET seen_at = now() - interval '1 hour' WHERE name = 'b'"))
    assert (await anonymous.get("/readyz")).json()["workers"]["gpu"] == 1


async def test_an_old_schema_is_reported(anonymous: httpx.AsyncClient, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'old'"))
    response = await anonymous.get("/readyz")
    assert response.status_code == 503
    assert "lethe migrate" in response.json()["checks"]["schema"]


async def test_a_redis_that_is_away_is_reported_without_its_password(
    app: FastAPI, settings: Settings, anonymous: httpx.AsyncClient
) -> None:
    app.state.settings = settings.model_copy(update={"redis_url": SecretStr("redis://:hush@127.0.0.1:1/0")})
    response = await anonymous.get("/readyz")
    assert response.status_code == 503
    assert "unreachable" in response.json()["checks"]["redis"]
    assert "hush" not in response.text


async def test_a_storage_that_cannot_be_written_is_reported(settings: Settings, anonymous: httpx.AsyncClient) -> None:
    shutil.rmtree(settings.storage_dir, ignore_errors=True)
    Path(settings.storage_dir).write_text("a file")
    response = await anonymous.get("/readyz")
    assert response.status_code == 503
    assert "unreachable" in response.json()["checks"]["storage"]
