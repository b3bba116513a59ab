"""Statements that go to the driver as they are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

import psycopg
import pytest
from psycopg.errors import UniqueViolation
from sqlalchemy import Table, Text, bindparam, insert, literal, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from app.auth.tables import Tenant
from app.embedded.postgres import libpq_url
from app.jobs.tables import Run
from app.kit.db import make_async_engine, make_engine
from app.kit.driver import Prepared, Reads, together

TENANTS = cast(Table, Tenant.__table__)
_NEW = insert(TENANTS).values(id=bindparam("new"), name=bindparam("word"))
ADD = Prepared(_NEW.returning(TENANTS.c.id))
FIND = Prepared(select(Tenant.id, Tenant.name).where(Tenant.id == bindparam("wanted")))


@pytest.fixture
async def sessions(database_url: str) -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    """Sessions of the web side."""
    engine = make_async_engine(database_url)
    yield async_sessionmaker(engine)
    await engine.dispose()


@pytest.fixture
async def reads(database_url: str) -> AsyncIterator[Reads]:
    """Connections for single questions."""
    opened = Reads(database_url)
    await opened.open()
    yield opened
    await opened.close()


async def test_a_row_has_its_columns_as_attributes(reads: Reads, database_url: str) -> None:
    with psycopg.connect(libpq_url(database_url)) as connection:
        connection.execute("INSERT INTO tenants (id, name) VALUES ('ten_a', 'a')")
    row = await reads.one(FIND, wanted="ten_a")
    assert (row.id, row.name) == ("ten_a", "a")
    assert await reads.one(FIND, wanted="ten_b") is None


async def test_what_a_session_rolls_back_was_never_there(
    sessions: async_sessionmaker[AsyncSession], reads: Reads
) -> None:
    async with sessions() as session, session.begin():
        await ADD.one(session, new="ten_a", word="a")
        assert (await FIND.one(session, wanted="ten_a")).name == "a"
        assert await reads.one(FIND, wanted="ten_a") is None
        await session.rollback()
    assert await reads.one(FIND, wanted="ten_a") is None


async def test_what_a_session_commits_is_seen(sessions: async_sessionmaker[AsyncSession], reads: Reads) -> None:
    async with sessions() as session, session.begin():
        await session.run_sync(lambda sync: ADD.now(sync, new="ten_a", word="a"))
    assert (await reads.one(FIND, wanted="ten_a")).name == "a"


async def test_an_error_ends_the_transaction(sessions: async_sessionmaker[AsyncSession], reads: Reads) -> None:
    async def twice() -> None:
        async with sessions() as session, session.begin():
            await ADD.one(session, new="ten_a", word="a")
            await ADD.one(session, new="ten_a", word="a")

    with pytest.raises(UniqueViolation):
        await twice()
    assert await reads.one(FIND, wanted="ten_a") is None


async def test_questions_that_travel_together_run_in_their_order(
    sessions: async_sessionmaker[AsyncSession], reads: Reads
) -> None:
    async with sessions() as session, session.begin():
        async with together(session):
            before = await FIND.ask(session, wanted="ten_a")
            added = await ADD.ask(session, new="ten_a", word="a")
            after = await FIND.ask(session, wanted="ten_a")
        assert await before.one() is None
        assert [row.id for row in await added.rows()] == ["ten_a"]
        assert (await after.one()).name == "a"
        assert await reads.one(FIND, wanted="ten_a") is None
    assert (await reads.one(FIND, wanted="ten_a")).name == "a"


async def test_what_travels_behind_an_error_is_not_run(
    sessions: async_sessionmaker[AsyncSession], reads: Reads
) -> None:
    async def thrice() -> None:
        async with sessions() as session, session.begin(), together(session):
            await ADD.ask(session, new="ten_a", word="a")
            await ADD.ask(session, new="ten_a", word="a")
            await ADD.ask(session, new="ten_b", word="b")

    with pytest.raises(UniqueViolation):
        await thrice()
    for wanted in ("ten_a", "ten_b"):
        assert await reads.one(FIND, wanted=wanted) is None


def test_it_runs_in_a_session_of_the_workers(database_url: str) -> None:
    engine = make_engine(database_url)
    with Session(engine) as session, session.begin():
        ADD.now(session, new="ten_a", word="a")
    with Session(engine) as session:
        assert FIND.now(session, wanted="ten_a")[0].name == "a"


async def test_connections_that_the_server_has_ended_are_replaced(reads: Reads, database_url: str) -> None:
    await reads.one(FIND, wanted="ten_a")
    with psycopg.connect(libpq_url(database_url), autocommit=True) as connection:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        connection.execute(f"{others} WHERE pid <> pg_backend_pid() AND datname = current_database()")
    assert await reads.one(FIND, wanted="ten_a") is None


def test_a_default_that_only_a_session_would_fill_in_is_refused() -> None:
    with pytest.raises(ValueError, match="default"):
        Prepared(insert(Run).values(id=bindparam("run")))


async def test_what_is_not_named_stands_in_the_text(reads: Reads) -> None:
    odd = "50% of '$1' and %s"
    asked = Prepared(select(literal(odd).label("odd"), bindparam("given", type_=Text).label("given")))
    assert tuple(await reads.one(asked, given="x")) == (odd, "x")
    assert asked._text.count(b"$") == 2
