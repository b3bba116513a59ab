"""What workers record in the audit chain: every change of a job's status, measurements, releases and purges."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from app.adapters.tables import AdapterVersion
from app.attestations.tables import Attestation
from app.audit.chain import Head, document_digest, verify
from app.audit.record import document
from app.audit.tables import AuditEntry, AuditHead
from app.datasets.tables import Dataset
from app.evaluations.tables import EvaluationRow
from app.jobs.tables import Run
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny
from tests.worker.rows import TENANT, add_adapter, add_job, change
from tests.worker.tiny_jobs import SHUT, add_tiny_adapter, run_job, versions
from worker.database import new_session
from worker.housekeeping import purge_datasets, reap_runs
from worker.lease import Fenced, Lease, claim

pytestmark = pytest.mark.usefixtures("service")
LEASE = timedelta(seconds=60)
PAST = datetime(2020, 1, 1, tzinfo=UTC)


def chain() -> list[AuditEntry]:
    """The whole chain, which has to hold."""
    with new_session() as session:
        entries = list(session.scalars(select(AuditEntry).order_by(AuditEntry.sequence)))
        head = session.get(AuditHead, TENANT)
    assert list(verify(map(document, entries), Head(head.sequence, head.hash) if head else None)) == []
    return entries


def statuses() -> list[dict[str, Any]]:
    """What was said of jobs, all by a worker."""
    entries = [entry for entry in chain() if entry.action == "job.status"]
    assert {entry.actor for entry in entries} <= {"worker"}
    return [entry.data for entry in entries]


def recorded(action: str) -> AuditEntry:
    """The one entry of an action."""
    (entry,) = [entry for entry in chain() if entry.action == action]
    return entry


def hold(run_id: str) -> Lease:
    """A lease on a claimed run."""
    held = claim(run_id, "w", LEASE)
    assert held is not None
    return Lease(held, LEASE, 30.0)


def test_a_run_that_is_handed_back_and_fails_is_recorded_at_every_change() -> None:
    job = add_job(add_adapter())
    hold(job.run_id).hand_back()
    with hold(job.run_id) as lease:
        lease.end("failed", "no", error={"code": "out_of_memory", "message": "Ada Quill did it"})
    run = {"run": job.run_id}
    assert statuses() == [
        {"status": "running"} | run,
        {"status": "queued"} | run,
        {"status": "running"} | run,
        {"status": "failed", "error": "out_of_memory"} | run,
    ]
    assert {entry.subject_id for entry in chain()} == {job.id}


def test_a_change_that_was_refused_or_failed_is_not_recorded() -> None:
    job = add_job(add_adapter())
    lease = hold(job.run_id)
    assert claim(job.run_id, "other", LEASE) is None

    def fail(_session: object) -> None:
        raise ZeroDivisionError

    with lease, pytest.raises(ZeroDivisionError):
        lease.end("succeeded", "released", with_it=fail)
    change(Run, job.run_id, attempt=2)
    with pytest.raises(Fenced):
        lease.end("failed", "no")
    with pytest.raises(Fenced):
        lease.hand_back()
    assert statuses() == [{"status": "running", "run": job.run_id}]


def test_lost_runs_are_recorded_when_they_are_queued_cancelled_or_given_up() -> None:
    adapter = add_adapter()
    job = add_job(adapter)
    for _ in range(4):
        assert claim(job.run_id, "w", -LEASE) is not None
        reap_runs()
    cancelled = add_job(adapter)
    assert claim(cancelled.run_id, "w", -LEASE) is not None
    change(Run, cancelled.run_id, cancel_requested_at=PAST)
    reap_runs()
    words = [(status["status"], status.get("error")) for status in statuses()]
    assert words == [
        *[("running", None), ("queued", None)] * 3,
        *[("running", None), ("failed", "worker_lost")],
        *[("running", None), ("cancelled", None)],
    ]


def test_a_purge_that_is_due_leaves_a_receipt() -> None:
    job = add_job(add_adapter(), forget=[{"text": "Ada"}, {"text": "Bob"}])
    change(type(job), job.id, status="failed")
    change(Dataset, job.forget_set_id, purge_at=PAST)
    assert (purge_datasets(), purge_datasets()) == (1, 0)
    receipt = recorded("dataset.purged")
    with new_session() as session:
        size = session.get_one(Dataset, job.forget_set_id).size
    assert (receipt.subject_id, receipt.actor) == (job.forget_set_id, "worker")
    assert receipt.data == {"purpose": "forget", "records": 2, "bytes": size}


def test_a_run_that_passes_is_recorded_from_its_start_to_the_purge(llama: Tiny) -> None:
    adapter = add_tiny_adapter(llama)
    job = run_job(adapter)
    source, released = versions(adapter)
    entries = chain()
    assert [(entry.action, entry.subject_id) for entry in entries] == [
        ("job.status", job.id),
        ("evaluation.stored", evaluation(job.run_id).id),
        ("job.status", job.id),
        ("adapter.version_released", released.id),
        ("adapter.version_superseded", source.id),
        ("attestation.signed", attestation(job.id).id),
        ("dataset.purged", job.forget_set_id),
    ]
    assert entries[2].data == {"status": "succeeded", "run": job.run_id, "verdict": "passed", "result_version": 2}
    check_release(entries[3].data, source, released)
    assert entries[4].data == {"adapter": adapter.id, "number": 1, "by": released.id}
    envelope = attestation(job.id).envelope
    signed = {"job": job.id, "version": released.id, "sha256": hashlib.sha256(envelope.encode()).hexdigest()}
    assert entries[5].data == signed | {"key": attestation(job.id).key_id}
    written = str([document(entry) for entry in chain()])
    words = {word for record in FORGET_RECORDS + RETAIN_RECORDS for text in record.values() for word in text.split()}
    assert [word for word in words if len(word) > 4 and word in written] == []


def evaluation(run_id: str) -> EvaluationRow:
    """What was measured in a run."""
    with new_session() as session:
        return session.scalars(select(EvaluationRow).where(EvaluationRow.run_id == run_id)).one()


def attestation(job_id: str) -> Attestation:
    """What was signed for a job."""
    with new_session() as session:
        return session.scalars(select(Attestation).where(Attestation.job_id == job_id)).one()


def check_release(data: dict[str, Any], source: AdapterVersion, released: AdapterVersion) -> None:
    """A release names the bytes that were released, and what they came from."""
    assert data == {
        "adapter": released.adapter_id,
        "number": 2,
        "run": released.run_id,
        "source": source.id,
        "weights_sha256": released.weights_sha256,
        "archive_sha256": released.archive_sha256,
    }


def test_an_evaluation_is_recorded_by_the_digest_of_what_is_stored(llama: Tiny) -> None:
    job = run_job(add_tiny_adapter(llama), SHUT)
    row, entry = evaluation(job.run_id), recorded("evaluation.stored")
    # Read back from the database, where numbers took another way than through the worker's memory.
    expected = {"run": job.run_id, "attempt": 1, "verdict": "failed", "sha256": document_digest(row.document)}
    assert (entry.subject_id, entry.data) == (row.id, expected)
    assert statuses()[-1] == {"status": "gate_failed", "run": job.run_id, "verdict": "failed"}
    assert "adapter.version_released" not in {entry.action for entry in chain()}
