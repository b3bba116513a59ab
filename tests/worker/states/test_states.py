"""The life of jobs under every order of events, with processes that are killed anywhere."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from app.adapters.tables import Adapter
from app.embedded.postgres import libpq_url
from app.settings import Settings, get_settings
from tests.app.conftest import PEPPER, application_of, caller, make_key
from tests.conftest import forget_settings
from tests.databases import empty
from tests.worker.conftest import Tiny
from tests.worker.states import compute, witness
from tests.worker.states.actors import mortality
from tests.worker.states.machine import Machine, World
from tests.worker.tiny_jobs import add_tiny_adapter
from worker.database import engine

# Nothing renews and nothing runs out but where a rule says so; every step may leave a checkpoint; no limits.
SETTINGS = {
    "LETHE_LEASE_SECONDS": "7200", "LETHE_HEARTBEAT_SECONDS": "3600", "LETHE_CHECKPOINT_SECONDS": "0.000001",
    "LETHE_RATE_LIMIT": "", "LETHE_RATE_LIMIT_WRITES": "", "LETHE_RATE_LIMIT_GUESSES": "",
    "LETHE_KEY_PEPPER": base64.b64encode(PEPPER).decode(),
}  # fmt: skip


@pytest.fixture
def world(service: Settings, llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The application and its workers, which can be killed."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    forget_settings()
    recording = compute.record(llama)
    compute.play_back(recording, monkeypatch)
    witness.set_up()

    def begin() -> list[Adapter]:
        with psycopg.connect(libpq_url(service.database_url.get_secret_value())) as connection:
            empty(connection, but=("tenants", "api_keys"))
        return [add_tiny_adapter(llama, name) for name in ("one", "two")]

    with asyncio.Runner() as runner, mortality(monkeypatch):
        stack = AsyncExitStack()
        yield World(runner, *runner.run(_callers(stack)), begin)
        runner.run(stack.aclose())


async def _callers(stack: AsyncExitStack) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
    """Two callers of the started application, until the stack is closed."""
    app = application_of(get_settings())
    await stack.enter_async_context(app.router.lifespan_context(app))
    first, second = [caller(app, make_key(engine(), "ours")) for _ in range(2)]
    return await stack.enter_async_context(first), await stack.enter_async_context(second)


def run(world: World, histories: int, steps: int, **how: Any) -> None:
    """Look at so many histories of so many steps each."""
    machine = type("History", (Machine,), {"world": world})
    how |= {"deadline": None, "suppress_health_check": list(HealthCheck)}
    run_state_machine_as_test(machine, settings=settings(max_examples=histories, stateful_step_count=steps, **how))


def test_nothing_is_lost_and_nothing_done_twice(world: World) -> None:
    # To make a failure smaller takes minutes: the long test does that.
    run(world, 3, 35, derandomize=True, phases=[Phase.generate])


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_done_twice_in_many_histories(world: World) -> None:
    run(world, 300, 60)
