"""What lies in the storage after a request whose transaction was not committed, or perhaps, or that found no room."""

from __future__ import annotations

import errno
from typing import Any

import httpx
import pytest
from psycopg import OperationalError
from sqlalchemy import Engine, event, select
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.orm import Session

from app.audit import record
from app.datasets.tables import Dataset
from app.jobs.service import JobService
from app.jobs.tables import UnlearnJob
from app.kit.driver import Prepared
from app.kit.problems import Conflict
from app.settings import Settings
from tests.app.conftest import post_job
from tests.app.test_datasets import open_dataset, stored_files

pytestmark = pytest.mark.usefixtures("adapter")


async def test_a_request_that_is_refused_at_last_leaves_no_bytes(
    client: httpx.AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(stored_files(settings))

    async def overtaken(*_args: object) -> None:
        raise Conflict("somebody was first")

    monkeypatch.setattr(JobService, "confirm", overtaken)
    assert (await post_job(client)).status_code == 409
    assert len(stored_files(settings)) == before


async def test_an_answer_that_the_database_could_not_give_any_more_costs_no_bytes(
    client: httpx.AsyncClient, settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit: Any = DefaultDialect.do_commit

    def lose_the_answer(self: DefaultDialect, connection: Any) -> None:
        commit(self, connection)
        monkeypatch.undo()
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(DefaultDialect, "do_commit", lose_the_answer)
    assert (await post_job(client)).status_code == 503
    with Session(engine) as session:
        (job,) = session.scalars(select(UnlearnJob))
        assert session.get_one(Dataset, job.forget_set_id).wrapped_key is not None
    assert len(open_dataset(settings, engine, job.forget_set_id)) == 1


async def test_a_commit_that_is_not_reached_leaves_no_bytes(
    client: httpx.AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, run = len(stored_files(settings)), Prepared.run

    async def lose_the_connection(self: Prepared, *args: Any) -> list[Any]:
        if self is record._APPEND:
            raise OperationalError("server closed the connection unexpectedly")
        return await run(self, *args)

    monkeypatch.setattr(Prepared, "run", lose_the_connection)
    assert (await post_job(client)).status_code == 503
    assert len(stored_files(settings)) == before


async def test_a_connection_that_is_lost_while_the_row_is_read_back_leaves_no_bytes(
    client: httpx.AsyncClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(stored_files(settings))

    def lose_the_connection(_self: object, _cursor: object, statement: str, *_arguments: object) -> None:
        if statement.startswith("SELECT datasets"):
            raise OperationalError("server closed the connection unexpectedly")

    event.listen(Engine, "before_cursor_execute", lose_the_connection)
    try:
        assert (await post_job(client)).status_code == 503
    finally:
        event.remove(Engine, "before_cursor_execute", lose_the_connection)
    assert len(stored_files(settings)) == before


async def test_a_request_that_finds_no_room_may_be_repeated_and_leaves_nothing(
    client: httpx.AsyncClient, settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(stored_files(settings))

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("app.kit.storage.os.fsync", full)
    response = await post_job(client)
    assert (response.status_code, response.json()["code"]) == (503, "unavailable")
    assert response.headers["Retry-After"] == "60"
    assert len(stored_files(settings)) == before
    monkeypatch.undo()
    assert (await post_job(client)).status_code == 202
