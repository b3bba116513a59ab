"""What the light worker does on its clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, text

from app import outbox
from app.adapters.tables import Adapter, AdapterVersion
from app.audit.tables import AuditEntry
from app.datasets import purging
from app.datasets.tables import Dataset
from app.jobs import transitions
from app.jobs.tables import JobEvent, OutboxMessage, Run, UnlearnJob
from app.kit.storage import LocalStorage
from tests.worker.rows import add_adapter, add_job, change, job_of, messages, run_of
from worker.database import engine, new_session, storage
from worker.housekeeping import (
    announce_deadlines,
    delete_blobs,
    purge_datasets,
    purge_versions,
    reap_runs,
    relay_outbox,
    sweep_blobs,
)
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


def test_bytes_whose_removal_nobody_was_told_of_are_swept() -> None:
    live, purged = add_job(add_adapter()), add_job(add_adapter("other"))
    with new_session() as session, session.begin():
        purging.shred(session, purged.forget_set_id)
    assert sweep_blobs() == 1
    with new_session() as session:
        gone, kept = (session.get_one(Dataset, job.forget_set_id) for job in (purged, live))
    assert storage().keys(gone.blob_key.rsplit("/", 1)[0]) == []
    assert storage().size(kept.blob_key)


def test_deadlines_are_told_of_once_each() -> None:
    now = datetime.now(UTC)
    near, far, late, ended = (add_job(add_adapter(name)) for name in ("near", "far", "late", "ended"))
    for job, days in ((near, 3), (far, 20), (late, -1), (ended, -1)):
        change(UnlearnJob, job.id, due_at=now + timedelta(days=days))
    change(UnlearnJob, ended.id, status="failed")
    assert announce_deadlines() == 2
    assert announce_deadlines() == 0
    assert [messages(job) for job in (near, far, late, ended)] == [
        ["the deadline is near"],
        [],
        ["the deadline has passed"],
        [],
    ]
    change(UnlearnJob, near.id, due_at=now - timedelta(days=1))
    assert announce_deadlines() == 1
    assert announce_deadlines() == 0
    assert messages(near)[-1] == "the deadline has passed"
    with new_session() as session:
        kinds = session.scalars(select(JobEvent.type).where(JobEvent.job_id == near.id).order_by(JobEvent.id)).all()
    assert kinds == ["job.due_soon", "job.overdue"]


def test_an_extended_deadline_is_warned_of_again() -> None:
    job = add_job(add_adapter())
    change(UnlearnJob, job.id, due_at=datetime.now(UTC) + timedelta(days=3))
    announce_deadlines()
    with new_session() as session, session.begin():
        session.execute(transitions.extend(job.id, datetime.now(UTC) + timedelta(days=5), "x")).one()
    assert announce_deadlines() == 1
    assert messages(job) == ["the deadline is near"] * 2


def test_blobs_are_only_deleted_once_the_key_is_gone() -> None:
    job = add_job(add_adapter())
    delete_blobs(job.forget_set_id)
    delete_blobs("ds_unknown")
    with new_session() as session:
        assert storage().size(session.get_one(Dataset, job.forget_set_id).blob_key)


def add_versions(adapter: Adapter, superseded_at: datetime = PAST) -> list[AdapterVersion]:
    """A superseded version 1 and the head, version 2, both with bytes."""
    versions = []
    with new_session() as session, session.begin():
        first = session.scalars(select(AdapterVersion).where(AdapterVersion.adapter_id == adapter.id)).one()
        first.status, first.superseded_at = "superseded", superseded_at
        session.get_one(Adapter, adapter.id).head = 2
        columns = {name: getattr(first, name) for name in ("tenant_id", "adapter_id", "config", "archive_bytes")}
        second = AdapterVersion(
            id=f"{first.id}2", number=2, weights_sha256="1" * 64, archive_sha256="1" * 64, weights_key="",
            archive_key="", **columns,
        )  # fmt: skip
        session.add(second)
        for version in (first, second):
            version.weights_key, version.archive_key = f"test/{version.id}/weights", f"test/{version.id}/archive"
            versions.append(version)
    for version in versions:
        for key in (version.weights_key, version.archive_key):
            with storage().create(key) as sink:
                sink.write(b"x")
    return versions


def status_of(version: AdapterVersion) -> str:
    """A version's status as it is now."""
    with new_session() as session:
        return session.get_one(AdapterVersion, version.id).status


def purge_receipts() -> list[tuple[str, dict[str, object], str]]:
    """Receipts in the audit chain: version, data, actor."""
    found = select(AuditEntry).where(AuditEntry.action == "adapter.version_purged").order_by(AuditEntry.sequence)
    with new_session() as session:
        return [(entry.subject_id, entry.data, entry.actor) for entry in session.scalars(found)]


def test_superseded_versions_are_purged_once_their_grace_is_over() -> None:
    old, head = add_versions(add_adapter())
    recent, _ = add_versions(add_adapter("second"), datetime.now(UTC) - timedelta(days=29))
    assert purge_versions() == 1
    assert [status_of(version) for version in (old, head, recent)] == ["purged", "ready", "superseded"]
    assert storage().keys(f"test/{old.id}") == []
    assert len(storage().keys("test")) == 6
    receipt = {
        "adapter": old.adapter_id, "number": 1, "weights_sha256": "0" * 64, "archive_sha256": "0" * 64, "bytes": 1,
        "reason": "grace",
    }  # fmt: skip
    assert purge_receipts() == [(old.id, receipt, "worker")]
    assert purge_versions() == 0, "what is purged stays so, with one receipt"


def test_a_version_that_a_live_job_compares_with_outlives_its_grace() -> None:
    old, _ = add_versions(add_adapter("control"))
    job = add_job(add_adapter(), control_version_id=old.id)
    assert (purge_versions(), status_of(old)) == (0, "superseded")
    change(type(job), job.id, status="gate_failed")
    assert (purge_versions(), status_of(old)) == (1, "purged")


def test_the_head_is_not_purged_even_when_it_is_marked_superseded() -> None:
    _, head = add_versions(adapter := add_adapter())
    with new_session() as session, session.begin():
        session.get_one(Adapter, adapter.id).head = 1
    assert purge_versions() == 0
    assert len(storage().keys(f"test/{head.id}")) == 2


def test_bytes_that_cannot_be_deleted_leave_no_receipt_and_keep_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck, _ = add_versions(add_adapter())
    free, _ = add_versions(add_adapter("second"), datetime(2021, 1, 1, tzinfo=UTC))
    delete = LocalStorage.delete

    def fail(self: LocalStorage, key: str) -> None:
        if key == stuck.weights_key:
            raise PermissionError
        delete(self, key)

    monkeypatch.setattr(LocalStorage, "delete", fail)
    assert purge_versions() == 1
    assert [status_of(version) for version in (stuck, free)] == ["superseded", "purged"]


def test_a_purge_that_was_cut_off_after_the_bytes_is_finished_by_the_next() -> None:
    old, _ = add_versions(add_adapter())
    for key in (old.weights_key, old.archive_key):
        storage().delete(key)
    assert (purge_versions(), status_of(old)) == (1, "purged")
