"""A run's ends, each seen by the job; the work itself is played by small recipes."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from safetensors import SafetensorError
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

from app.jobs.tables import OutboxMessage, Run
from app.settings import Settings, get_settings
from tests.worker.rows import add_adapter, add_job, change, job_of, messages, run_of
from worker.database import new_session
from worker.errors import JobError
from worker.execution import Recipe, execute
from worker.housekeeping import reap_runs
from worker.lease import Fenced, Lease

pytestmark = pytest.mark.usefixtures("service")


def run(recipe: Recipe, *, is_stopping: Callable[[], bool] = lambda: False) -> tuple[str, str, list[str]]:
    """Execute a fresh job; its status, its run's status, and its history."""
    job = add_job(add_adapter())
    execute(job.run_id, "w", get_settings(), recipe, is_stopping)
    return job_of(job).status, run_of(job).status, messages(job)


def test_a_recipe_ends_its_run_itself() -> None:
    status, run_status, history = run(lambda lease, _: lease.end("succeeded", "done", verdict="passed"))
    assert (status, run_status, history[-1]) == ("succeeded", "succeeded", "done")


def test_an_expected_error_fails_the_job_with_its_code() -> None:
    def fail(_lease: Lease, _settings: Settings) -> None:
        raise JobError("record_unusable", "record 3 has no answer")

    job = add_job(add_adapter())
    execute(job.run_id, "w", get_settings(), fail)
    assert job_of(job).status == "failed"
    assert job_of(job).error == {"code": "record_unusable", "message": "record 3 has no answer"}


def test_a_crash_fails_the_job_and_quotes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    def crash(_lease: Lease, _settings: Settings) -> None:
        raise ValueError("Jane Doe lives in Quell")

    status, run_status, history = run(crash)
    assert (status, run_status) == ("failed", "failed")
    assert "ValueError" in history[-1]
    printed = capsys.readouterr().out
    assert "Jane" not in "".join(history) + printed
    assert "test_execution.py" in printed


def test_a_cancelled_run_ends_as_cancelled() -> None:
    def work(lease: Lease, _settings: Settings) -> None:
        change(Run, lease.claim.run_id, cancel_requested_at=run_created)
        lease.progress(step=1)

    job = add_job(add_adapter())
    run_created = run_of(job).created_at
    execute(job.run_id, "w", get_settings(), work)
    assert (job_of(job).status, run_of(job).status) == ("cancelled", "cancelled")


def test_a_worker_that_stops_hands_its_run_back() -> None:
    status, run_status, history = run(lambda lease, _: lease.check(), is_stopping=lambda: True)
    assert (status, run_status) == ("queued", "queued")
    assert "handed back" in history[-1]


def test_a_fenced_worker_leaves_everything_to_the_new_holder() -> None:
    def sleep_too_long(lease: Lease, _settings: Settings) -> None:
        change(Run, lease.claim.run_id, attempt=2, worker="other")
        raise Fenced

    status, run_status, history = run(sleep_too_long)
    assert (status, run_status, history) == ("running", "running", ["started, attempt 1"])


def test_a_failure_of_a_fenced_worker_is_not_written() -> None:
    def fail_late(lease: Lease, _settings: Settings) -> None:
        change(Run, lease.claim.run_id, attempt=2, worker="other")
        raise JobError("x", "too late")

    status, run_status, _ = run(fail_late)
    assert (status, run_status) == ("running", "running")


def test_a_message_that_comes_twice_runs_once() -> None:
    job = add_job(add_adapter())
    calls: list[int] = []

    def work(lease: Lease, _settings: Settings) -> None:
        calls.append(lease.claim.attempt)
        execute(job.run_id, "second", get_settings(), work)
        lease.end("succeeded", "done")

    execute(job.run_id, "w", get_settings(), work)
    execute(job.run_id, "w", get_settings(), work)
    assert calls == [1]


def test_an_unknown_run_is_ignored() -> None:
    execute("run_none", "w", get_settings(), lambda _lease, _settings: pytest.fail("must not be called"))


def test_a_database_that_is_away_leaves_the_run_to_its_lease(capsys: pytest.CaptureFixture[str]) -> None:
    def blip(_lease: Lease, _settings: Settings) -> None:
        raise OperationalError("UPDATE runs SET x = 'Jane Doe'", {}, Exception("server closed the connection"))

    status, run_status, history = run(blip)
    assert (status, run_status, history) == ("running", "running", ["started, attempt 1"])
    assert "Jane" not in capsys.readouterr().out


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "x"), SafetensorError("I/O error: too large (os error 27)")])
def test_a_storage_that_is_full_puts_the_run_off(error: Exception) -> None:
    def fill(_lease: Lease, _settings: Settings) -> None:
        raise error

    job = add_job(add_adapter())
    execute(job.run_id, "w", get_settings(), fill)
    run = run_of(job)
    assert (job_of(job).status, run.status, run.lost_workers) == ("queued", "queued", 0)
    assert messages(job)[-1] == "the storage is full or cannot be used; tried again in a minute"
    with new_session() as session:
        assert session.scalars(select(OutboxMessage)).all() == [], "it would be tried again at once"
        assert session.scalar(select(Run.publish_after > func.now() + text("interval '30 seconds'")))
    change(Run, job.run_id, publish_after=run.created_at)
    assert reap_runs() == 1


def test_bytes_that_are_missing_are_no_storage_that_is_full() -> None:
    def miss(_lease: Lease, _settings: Settings) -> None:
        raise FileNotFoundError(errno.ENOENT, "x")

    status, _, _ = run(miss)
    assert status == "failed"


def test_an_end_that_cannot_be_written_is_not_printed_by_anybody_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(_lease: Lease, _settings: Settings) -> None:
        raise ValueError("Jane Doe lives in Quell")

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("while ending: Jane Doe")

    monkeypatch.setattr(Lease, "end", refuse)
    status, _, _ = run(crash)
    assert status == "running"
    assert "Jane" not in capsys.readouterr().out
