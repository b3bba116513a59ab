"""How far a run is, as a caller sees it."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.jobs.tables import UnlearnJob
from tests.worker.rows import add_adapter, add_job, run_of
from worker.lease import Lease, claim
from worker.progress import Progress

pytestmark = pytest.mark.usefixtures("service")


class Clock:
    """A clock that stands still until it is moved."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that progress is measured by."""
    found = Clock()
    monkeypatch.setattr("worker.progress.time", found)
    return found


def begun(job: UnlearnJob) -> Progress:
    """The progress of a claimed run."""
    held = claim(job.run_id, "w", timedelta(seconds=60))
    assert held is not None
    return Progress(Lease(held, timedelta(seconds=60), 30.0))


def shown(job: UnlearnJob) -> tuple[int, int | None, float, float | None]:
    """Step, most steps, percent, seconds left."""
    run = run_of(job)
    return run.step, run.total_steps, run.percent, run.eta_seconds


def test_the_time_that_is_left_is_that_of_the_steps_that_are_left(clock: Clock) -> None:
    job = add_job(add_adapter())
    progress = begun(job)
    with progress.phase("unlearning"):
        for step in range(1, 26):
            clock.now += 2
            progress.step(step, 100)
        assert shown(job) == (25, 100, 20 + 55 / 4, 150.0)


def test_steps_of_an_earlier_attempt_took_no_time_of_this_one(clock: Clock) -> None:
    job = add_job(add_adapter())
    progress = begun(job)
    with progress.phase("unlearning"):
        for step in (91, 92):
            clock.now += 2
            progress.step(step, 100)
        assert shown(job) == (92, 100, 20 + 92 / 100 * 55, 16.0)


def test_a_run_that_stops_early_moves_on_to_the_next_phase(clock: Clock) -> None:
    job = add_job(add_adapter())
    progress = begun(job)
    with progress.phase("unlearning"):
        clock.now += 1
        progress.step(10, 100)
    with progress.phase("evaluating"):
        assert shown(job) == (10, 100, 75.0, None)


def test_steps_that_follow_at_once_are_not_all_written(clock: Clock) -> None:
    job = add_job(add_adapter())
    progress = begun(job)
    with progress.phase("unlearning"):
        progress.step(1, 100)
        assert shown(job)[0] == 0
        clock.now += 1
        progress.step(2, 100)
        progress.step(3, 100)
        assert shown(job)[0] == 2
        progress.step(100, 100)
        assert shown(job)[0] == 100
