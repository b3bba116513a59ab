"""Which workers are alive."""

from __future__ import annotations

import time
from multiprocessing import get_context

import pytest
from celery.worker import state
from sqlalchemy import text

from worker.database import engine
from worker.heartbeat import WorkerName, beat, fall_silent, pulse

WORKER = WorkerName("gpu@here", "gpu")


def seen() -> list[tuple[str, str, bool]]:
    """Name, queue, and whether it was seen within the last minute."""
    query = "SELECT name, queue, seen_at > now() - interval '1 minute' FROM worker_heartbeats"
    with engine().connect() as connection:
        return [(row[0], row[1], row[2]) for row in connection.execute(text(query))]


@pytest.mark.usefixtures("service")
def test_a_worker_is_listed_from_its_first_beat_until_it_stops() -> None:
    beat(WORKER)
    with engine().begin() as connection:
        connection.execute(text("UPDATE worker_heartbeats SET seen_at = now() - interval '1 hour'"))
    assert seen() == [("gpu@here", "gpu", False)]
    beat(WORKER)
    assert seen() == [("gpu@here", "gpu", True)]
    fall_silent("gpu@other")
    assert len(seen()) == 1
    fall_silent(WORKER.name)
    assert seen() == []


@pytest.mark.usefixtures("service")
def test_a_database_that_is_away_does_not_stop_a_worker(capsys: pytest.CaptureFixture[str]) -> None:
    with engine().begin() as connection:
        connection.execute(text("DROP TABLE worker_heartbeats"))
    beat(WORKER)
    assert "heartbeat not written" in capsys.readouterr().out


@pytest.mark.usefixtures("service")
def test_a_light_worker_whose_clock_has_died_ends_to_be_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "should_stop", None)
    clock = get_context("spawn").Process(target=time.sleep, args=(600,))
    clock.start()
    pulse(WORKER, None)  # a worker without a clock of its own
    pulse(WORKER, clock)
    assert state.should_stop is None
    clock.kill()
    clock.join()
    pulse(WORKER, clock)
    assert state.should_stop == 1
