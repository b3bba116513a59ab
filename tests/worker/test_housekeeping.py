"""What the light worker does on its clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text

from app import outbox
from app.datasets.tables import Dataset
from app.jobs.tables import OutboxMessage, Run
from tests.worker.rows import add_adapter, add_job, change, job_of, messages, run_of
from worker.database import engine, new_session, storage
from worker.housekeeping import delete_blobs, purge_datasets, reap_runs, relay_outbox
from worker.lease import claim

pytestmark = pytest.mark.usefixtures("service")
PAST = datetime(2020, 1, 1, tzinfo=UTC)


def waiting(task: str | None = None) -> list[str]:
    """What waits in the outbox, for one task or any."""
    messages = select(OutboxMessage.argument).order_by(OutboxMessage.id)
    with new_session() as session:
        return list(session.scalars(messages if task is None else messages.where(OutboxMessage.task == task)))


def add_messages(*arguments: str) -> None:
    """Messages in the outbox."""
    with new_session() as session, session.begin():
        for argument in arguments:
            session.execute(outbox.execute_run(argument))


def test_messages_are_published_in_order_and_deleted() -> None:
    add_messages("a", "b")
    published: list[tuple[str, str, str]] = []
    assert relay_outbox(lambda *message: published.append(message)) == 2
    assert published == [(outbox.RUN_TASK, outbox.GPU_QUEUE, "a"), (outbox.RUN_TASK, outbox.GPU_QUEUE, "b")]
    assert waiting() == []


def test_a_message_that_could_not_be_published_stays() -> None:
    add_messages("a", "b")

    def fail(_task: str, _queue: str, argument: str) -> None:
        if argument == "b":
            raise ConnectionError

    with pytest.raises(ConnectionError):
        relay_outbox(fail)
    assert waiting() == ["a", "b"]


def test_two_relays_do_not_publish_the_same_message() -> None:
    add_messages("a")
    published: list[str] = []

    def nested(_task: str, _queue: str, argument: str) -> None:
        published.append(argument)
        assert relay_outbox(lambda *_: published.append("again")) == 0

    relay_outbox(nested)
    assert published == ["a"]


def test_a_lost_run_is_queued_and_published_again() -> None:
    job = add_job(add_adapter())
    claim(job.run_id, "w", timedelta(seconds=-1))
    assert reap_runs() == 1
    run = run_of(job)
    assert (run.status, run.lost_workers, run.worker, run.lease_until) == ("queued", 1, None, None)
    assert job_of(job).status == "queued"
    assert waiting() == [job.run_id]
    assert messages(job)[-1] == "the worker of attempt 1 was lost; queued again"


def test_a_run_with_a_live_lease_is_left_alone() -> None:
    job = add_job(add_adapter())
    claim(job.run_id, "w", timedelta(seconds=60))
    assert reap_runs() == 0
    assert run_of(job).status == "running"


def test_a_run_that_loses_its_workers_again_and_again_is_given_up() -> None:
    adapter = add_adapter()
    job, following = add_job(adapter), add_job(adapter)
    for _ in range(4):
        assert claim(job.run_id, "w", timedelta(seconds=-1)) is not None
        reap_runs()
    ended = job_of(job)
    assert (run_of(job).status, ended.status) == ("failed", "failed")
    assert ended.error is not None
    assert ended.error["code"] == "worker_lost"
    assert waiting()[-1] == following.run_id
    assert waiting(outbox.DELETE_CHECKPOINTS_TASK) == [job.run_id]


def test_a_lost_run_that_was_to_be_cancelled_is_cancelled() -> None:
    job = add_job(add_adapter())
    claim(job.run_id, "w", timedelta(seconds=-1))
    change(Run, job.run_id, cancel_requested_at=PAST)
    reap_runs()
    assert (run_of(job).status, job_of(job).status) == ("cancelled", "cancelled")
    assert waiting(outbox.RUN_TASK) == []
    assert waiting(outbox.DELETE_CHECKPOINTS_TASK) == [job.run_id]


def test_a_run_that_nobody_took_is_announced_again_with_growing_waits() -> None:
    job = add_job(add_adapter())
    assert reap_runs() == 0
    waits = []
    for _ in range(9):
        change(Run, job.run_id, publish_after=PAST)
        assert reap_runs() == 1
        with engine().connect() as connection:
            waits.append(connection.scalar(text("SELECT round(extract(epoch FROM publish_after - now())) FROM runs")))
        assert reap_runs() == 0
    assert [int(wait or 0) for wait in waits] == [120, 240, 300, 300, 300, 300, 300, 300, 300]
    assert waiting() == [job.run_id] * 9
    assert messages(job) == ["no worker has taken the job yet; it was announced again"] * 9


def test_a_run_that_waits_for_its_adapter_is_not_announced() -> None:
    adapter = add_adapter()
    first, second = add_job(adapter), add_job(adapter)
    claim(first.run_id, "w", timedelta(seconds=60))
    change(Run, second.run_id, publish_after=PAST)
    assert reap_runs() == 0


def test_datasets_are_purged_when_due_unless_a_live_job_needs_them() -> None:
    live, ended = add_job(add_adapter()), add_job(add_adapter("other"))
    for job in (live, ended):
        change(Dataset, job.forget_set_id, purge_at=PAST)
    change(type(ended), ended.id, status="failed")
    assert purge_datasets() == 1
    with new_session() as session:
        assert session.get_one(Dataset, live.forget_set_id).wrapped_key is not None
        purged = session.get_one(Dataset, ended.forget_set_id)
    assert (purged.wrapped_key, waiting()) == (None, [purged.id])
    assert storage().size(purged.blob_key)
    delete_blobs(purged.id)
    for key in (purged.blob_key, purged.digests_key):
        with pytest.raises(FileNotFoundError):
            storage().size(key)


def test_blobs_are_only_deleted_once_the_key_is_gone() -> None:
    job = add_job(add_adapter())
    delete_blobs(job.forget_set_id)
    delete_blobs("ds_unknown")
    with new_session() as session:
        assert storage().size(session.get_one(Dataset, job.forget_set_id).blob_key)
