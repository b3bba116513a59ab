"""Connections that the server has ended."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.embedded.postgres import libpq_url
from app.kit import liveness
from app.kit.db import make_async_engine


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """The engine of the web side."""
    engine = make_async_engine(database_url)
    yield engine
    await engine.dispose()


async def backend(engine: AsyncEngine) -> int:
    """Which of the server's processes answers."""
    async with engine.connect() as connection:
        return int(await connection.scalar(text("SELECT pg_backend_pid()")))


async def test_a_connection_that_the_server_has_ended_is_replaced(engine: AsyncEngine, database_url: str) -> None:
    before = await backend(engine)
    assert await backend(engine) == before
    with psycopg.connect(libpq_url(database_url), autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", [before])
    assert await backend(engine) != before


async def test_a_connection_that_has_rested_is_asked_and_one_that_was_just_used_is_not(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def note(*_arguments: object) -> bool:
        asked.append(True)
        return True

    before = await backend(engine)
    monkeypatch.setattr(engine.dialect, "do_ping", note)
    assert await backend(engine) == before
    assert not asked
    monkeypatch.setattr(liveness, "REST_SECONDS", -1.0)
    assert await backend(engine) == before
    assert asked
