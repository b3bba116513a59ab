"""Holding a run: one holder at a time, and no write by a holder that lost it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from app import outbox
from app.jobs import transitions
from app.jobs.tables import JobEvent, OutboxMessage, Run, UnlearnJob
from tests.worker.rows import add_adapter, add_job, change, job_of, messages, run_of
from worker.database import new_session
from worker.lease import Cancelled, Claim, Fenced, HandBack, Lease, claim

LEASE = timedelta(seconds=60)
pytestmark = pytest.mark.usefixtures("service")


def hold(run_id: str, *, heartbeat: float = 30.0, is_stopping: Callable[[], bool] = lambda: False) -> Lease:
    """A lease on a claimed run."""
    held = claim(run_id, "w", LEASE)
    assert held is not None
    return Lease(held, LEASE, heartbeat, is_stopping)


def waiting_messages() -> list[tuple[str, str]]:
    """Task and argument of what waits in the outbox."""
    with new_session() as session:
        messages = session.scalars(select(OutboxMessage).order_by(OutboxMessage.id))
        return [(message.task, message.argument) for message in messages]


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so; a test that waits for ever is ended here."""
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("did not happen")


def never(check: Callable[[], None]) -> Callable[[], bool]:
    """A condition that is never met, but raises what `check` raises."""

    def condition() -> bool:
        check()
        return False

    return condition


def test_a_queued_run_is_claimed_once() -> None:
    job = add_job(add_adapter())
    held = claim(job.run_id, "first", LEASE)
    run = run_of(job)
    assert run.started_at is not None
    assert held == Claim(job.run_id, 1, job.tenant_id, job.adapter_id, run.started_at)
    assert claim(job.run_id, "second", LEASE) is None
    assert (run.status, run.phase, run.worker, run.attempt) == ("running", "preparing", "first", 1)
    assert run.lease_until is not None
    assert job_of(job).status == "running"
    assert messages(job) == ["started, attempt 1"]


def test_of_many_claims_at_once_one_succeeds() -> None:
    job = add_job(add_adapter())
    start = threading.Barrier(8)

    def try_it(number: int) -> Claim | None:
        start.wait()
        return claim(job.run_id, str(number), LEASE)

    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(try_it, range(8)))
    assert sum(held is not None for held in claims) == 1


def test_two_runs_of_an_adapter_never_run_together() -> None:
    adapter = add_adapter()
    jobs = [add_job(adapter) for _ in range(4)]
    start = threading.Barrier(len(jobs))

    def try_it(job: UnlearnJob) -> Claim | None:
        start.wait()
        return claim(job.run_id, "w", LEASE)

    with ThreadPoolExecutor(len(jobs)) as pool:
        claims = list(pool.map(try_it, jobs))
    assert sum(held is not None for held in claims) == 1


def test_runs_of_different_adapters_run_together() -> None:
    jobs = [add_job(add_adapter(f"a{number}")) for number in range(2)]
    assert all(claim(job.run_id, "w", LEASE) for job in jobs)


def test_a_run_whose_cancelling_was_asked_for_is_not_claimed() -> None:
    job = add_job(add_adapter())
    change(Run, job.run_id, cancel_requested_at=job_of(job).created_at)
    assert claim(job.run_id, "w", LEASE) is None


def test_a_heartbeat_extends_the_lease() -> None:
    job = add_job(add_adapter())
    lease = hold(job.run_id, heartbeat=0.05)
    before = run_of(job).lease_until
    assert before is not None
    with lease:
        wait_for(lambda: (run_of(job).lease_until or before) > before)


def test_a_heartbeat_notices_that_cancelling_was_asked_for() -> None:
    job = add_job(add_adapter())
    with hold(job.run_id, heartbeat=0.05) as lease:
        lease.check()
        change(Run, job.run_id, cancel_requested_at=job_of(job).created_at)
        with pytest.raises(Cancelled):
            wait_for(never(lease.check))


def test_a_heartbeat_notices_that_the_lease_was_lost() -> None:
    job = add_job(add_adapter())
    with hold(job.run_id, heartbeat=0.05) as lease:
        change(Run, job.run_id, attempt=2)
        with pytest.raises(Fenced):
            wait_for(never(lease.check))


def test_a_worker_that_is_told_to_stop_hands_back() -> None:
    job = add_job(add_adapter())
    with hold(job.run_id, is_stopping=lambda: True) as lease, pytest.raises(HandBack):
        lease.progress(step=1)


def test_handing_back_can_be_put_off_for_a_while_only() -> None:
    job = add_job(add_adapter())
    with hold(job.run_id, is_stopping=lambda: True) as lease:
        with lease.postponing(0.2):
            lease.progress(step=1)
            assert lease.stopping
            with pytest.raises(HandBack):
                wait_for(never(lease.check))
        with lease.postponing(60):
            lease.check()
        with pytest.raises(HandBack):
            lease.check()


def test_putting_off_holds_back_nothing_but_handing_back() -> None:
    job = add_job(add_adapter())
    with hold(job.run_id, is_stopping=lambda: True) as lease, lease.postponing(60):
        change(Run, job.run_id, cancel_requested_at=job.requested_at)
        with pytest.raises(Cancelled):
            lease.progress(step=1)
        change(Run, job.run_id, attempt=2)
        with pytest.raises(Fenced):
            lease.progress(step=2)


def test_a_run_keeps_its_start_over_attempts_until_it_is_retried() -> None:
    job = add_job(add_adapter())
    first = hold(job.run_id)
    first.hand_back()
    second = hold(job.run_id)
    assert second.claim.started_at == first.claim.started_at
    second.end("failed", "broken")
    with new_session() as session, session.begin():
        assert session.scalars(transitions.retry(job.run_id)).one()
    assert hold(job.run_id).claim.started_at > first.claim.started_at


WRITES: dict[str, Callable[[Lease], None]] = {
    "progress": lambda lease: lease.progress(step=9),
    "event": lambda lease: lease.event("stale"),
    "metrics": lambda lease: lease.metrics("stale", step=9),
    "warn": lambda lease: lease.warn("stale"),
    "store": lambda lease: lease.store(OutboxMessage(task="t", queue="q", argument="stale")),
    "end": lambda lease: lease.end("succeeded", "stale", verdict="passed", result_version=9),
    "hand_back": lambda lease: lease.hand_back(),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("status", ["running", "queued", "cancelled"])
def test_a_stale_holder_writes_nothing(write: Callable[[Lease], None], status: str) -> None:
    job = add_job(add_adapter())
    lease = hold(job.run_id)
    values = {"attempt": 2} if status == "running" else {"status": status, "lease_until": None}
    change(Run, job.run_id, **values)
    before = messages(job)
    with pytest.raises(Fenced):
        write(lease)
    run = run_of(job)
    assert (run.status, run.step) == (status, 0)
    assert job_of(job).verdict is None
    assert messages(job) == before
    with new_session() as session:
        assert session.scalars(select(OutboxMessage)).all() == []


def test_the_end_of_a_run_is_the_end_of_its_job_and_wakes_the_next() -> None:
    adapter = add_adapter()
    job, waiting = add_job(adapter), add_job(adapter)
    hold(job.run_id).end("gate_failed", "too little", verdict="failed")
    ended = job_of(job)
    assert (ended.status, ended.verdict) == ("gate_failed", "failed")
    assert ended.finished_at is not None
    run = run_of(job)
    assert (run.status, run.lease_until, run.phase) == ("gate_failed", None, None)
    assert waiting_messages() == [(outbox.DELETE_CHECKPOINTS_TASK, job.run_id), (outbox.RUN_TASK, waiting.run_id)]
    with new_session() as session:
        levels = session.scalars(select(JobEvent.level).where(JobEvent.job_id == job.id).order_by(JobEvent.id)).all()
    assert levels == ["info", "warn"]


def test_what_is_added_at_the_end_is_undone_when_it_fails() -> None:
    job = add_job(add_adapter())

    def fail(session: Session) -> None:
        session.add(OutboxMessage(task="t", queue="q", argument="x"))
        raise RuntimeError

    with pytest.raises(RuntimeError):
        hold(job.run_id).end("succeeded", "done", with_it=fail)
    assert (run_of(job).status, job_of(job).status) == ("running", "running")
    with new_session() as session:
        assert session.scalars(select(OutboxMessage)).all() == []


def test_a_run_that_is_handed_back_can_be_claimed_again() -> None:
    job = add_job(add_adapter())
    hold(job.run_id).hand_back()
    assert (run_of(job).status, job_of(job).status) == ("queued", "queued")
    # Its checkpoints stay: the next attempt goes on from them.
    assert waiting_messages() == [(outbox.RUN_TASK, job.run_id)]
    held = claim(job.run_id, "other", LEASE)
    assert held is not None
    assert held.attempt == 2
    assert run_of(job).lost_workers == 0


def test_a_run_that_is_handed_back_after_cancelling_was_asked_for_is_cancelled() -> None:
    adapter = add_adapter()
    job, waiting = add_job(adapter), add_job(adapter)
    lease = hold(job.run_id)
    change(Run, job.run_id, cancel_requested_at=job.requested_at)
    lease.hand_back()
    assert (run_of(job).status, job_of(job).status) == ("cancelled", "cancelled")
    assert waiting_messages() == [(outbox.DELETE_CHECKPOINTS_TASK, job.run_id), (outbox.RUN_TASK, waiting.run_id)]
