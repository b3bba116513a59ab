"""What the light worker does on its clock: publish the outbox, bring back lost runs, purge what is due."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import structlog
from sqlalchemy import Select, and_, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from app import outbox
from app.adapters import purging as versions
from app.adapters.tables import Adapter, AdapterVersion
from app.data_keys import scrub
from app.datasets import purging
from app.datasets.tables import Dataset
from app.idempotency import repository as idempotency
from app.identities.purging import keeps
from app.identities.tables import IdentityIndex
from app.jobs import transitions
from app.jobs.tables import LIVE, OutboxMessage, Run, UnlearnJob
from app.settings import get_settings
from app.webhooks import events as webhooks
from worker import checkpoints
from worker.database import engine, new_session, storage, vault
from worker.lease import follow, wake_next

BATCH = 100
_SWEPT = timedelta(days=1)  # beyond it `lethe doctor` finds what is left
log = structlog.get_logger(__name__)


def relay_outbox(publish: Callable[[str, str, str], None]) -> int:
    """Publish waiting messages, oldest first, and delete them. Answers how many.

    A crash between publishing and deleting publishes twice, which does no harm; the other order would lose one.

    Args:
        publish: sends (task, queue, argument) to the broker, or raises.
    """
    with new_session() as session, session.begin():
        oldest = select(OutboxMessage).order_by(OutboxMessage.id).limit(BATCH).with_for_update(skip_locked=True)
        messages = session.scalars(oldest).all()
        for message in messages:
            publish(message.task, message.queue, message.argument)
            session.delete(message)
        return len(messages)


def reap_runs() -> int:
    """Bring back runs whose worker is gone and those whose message may be. Answers how many."""
    with new_session() as session:
        lost = session.scalars(select(Run.id).where(transitions.expired()).limit(BATCH)).all()
        forgotten = session.scalars(_forgotten().limit(BATCH)).all()
    for run_id in lost:
        with new_session() as session, session.begin():
            _bring_back(session, run_id)
    for run_id in forgotten:
        with new_session() as session, session.begin():
            _publish_again(session, run_id)
    return len(lost) + len(forgotten)


def purge_datasets() -> int:
    """Shred datasets whose time is up and that no live job needs. Answers how many."""
    uses = (
        purging.needs(Dataset.id),
        purging.is_default(Dataset.id),
        purging.trains(Dataset.id),
        keeps(Dataset.id),
    )
    needed = or_(*(exists().where(use) for use in uses))
    due = select(Dataset.id).where(Dataset.purge_at < func.now(), Dataset.purged_at.is_(None), ~needed)
    with new_session() as session, session.begin():
        datasets = session.scalars(due.limit(BATCH).with_for_update(skip_locked=True)).all()
        return sum(shred_unless_needed(session, dataset_id) for dataset_id in datasets)


def shred_unless_needed(session: Session, dataset_id: str) -> bool:
    """Destroy a dataset's key unless something needs it, and have its blobs removed once that is committed.

    The caller has locked the row. What needs it is asked here, in a statement after the lock: a job that was
    accepted while the caller waited for the lock is seen only now.
    """
    uses = (
        select(UnlearnJob.id).where(purging.needs(dataset_id)),
        select(Adapter.id).where(purging.is_default(dataset_id)),
        select(Adapter.id).where(purging.trains(dataset_id)),
        select(IdentityIndex.id).where(keeps(dataset_id)),
    )
    if any(session.scalar(use.limit(1)) is not None for use in uses):
        return False
    purging.shred(session, dataset_id)
    return True


def purge_versions() -> int:
    """Purge versions that were superseded longer ago than the grace period. Answers how many."""
    grace = timedelta(days=get_settings().superseded_grace_days)
    with new_session() as session:
        due = session.scalars(_superseded(grace).order_by(AdapterVersion.superseded_at).limit(BATCH)).all()
    return sum(_purge_version(version.id, grace) for version in due)


def _superseded(grace: timedelta) -> Select[AdapterVersion]:
    return select(AdapterVersion).where(
        AdapterVersion.status == "superseded",
        AdapterVersion.superseded_at <= func.now() - grace,
        ~versions.is_needed(),
    )


def _purge_version(version_id: str, grace: timedelta) -> bool:
    """Purge one version in a transaction of its own, so that one that cannot be deleted keeps no other."""
    with new_session() as session, session.begin():
        locked = _superseded(grace).where(AdapterVersion.id == version_id).with_for_update(skip_locked=True)
        version = session.scalar(locked)
        if version is None or versions.still_needed(session, version_id):
            return False
        try:
            versions.delete_bytes(storage(), version)
        except OSError as error:
            log.warning("version not purged", version=version_id, error=type(error).__name__)
            return False
        versions.record_purge(session, version, "grace")
    log.info("version purged", version=version_id)
    return True


def delete_blobs(dataset_id: str) -> None:
    """Remove the bytes of a dataset whose key is gone."""
    with new_session() as session:
        dataset = session.get(Dataset, dataset_id)
    if dataset is not None and dataset.purged_at is not None:
        vault().delete_blobs(dataset)
        log.info("dataset purged", dataset=dataset_id)


def sweep_blobs() -> int:
    """Remove once more the bytes of datasets that were purged of late: the message to do so may have been lost.

    Answers at how many it looked.
    """
    late = Dataset.purged_at.between(func.now() - _SWEPT, func.now())
    with new_session() as session:
        purged = session.scalars(select(Dataset).where(late)).all()
    for dataset in purged:
        vault().delete_blobs(dataset)
    return len(purged)


def delete_checkpoints(run_id: str) -> None:
    """Remove the checkpoints of a run that has ended or never was; a live one keeps those of its present life."""
    with new_session() as session:
        run = session.get(Run, run_id)
    live = run is not None and run.status in LIVE
    checkpoints.delete_checkpoints(storage(), run_id, but=run.started_at if run is not None and live else None)


def sweep_checkpoints() -> int:
    """Remove what a worker stored after its run had ended without it. Answers at how many runs it looked."""
    run_ids = checkpoints.runs_with_checkpoints(storage())
    for run_id in run_ids:
        delete_checkpoints(run_id)
    return len(run_ids)


def scrub_keys() -> bool:
    """Remove what destroyed data keys left in the database, if any were destroyed since. Answers whether it did."""
    if not scrub.due(engine()):
        return False
    try:
        done = scrub.scrub(engine())
    except scrub.NotScrubbed as reason:
        log.warning("destroyed keys not scrubbed", reason=str(reason))
        return False
    log.info("destroyed keys scrubbed", tenants=done.tenants, log=done.log)
    return True


def announce_deadlines() -> int:
    """Tell of live jobs whose deadline is near or has passed, once each. Answers how many."""
    before = timedelta(days=get_settings().due_soon_days)
    near = transitions.due_soon(before)
    passed = and_(transitions.overdue(), UnlearnJob.overdue_noted_at.is_(None))
    with new_session() as session:
        found = session.execute(select(UnlearnJob.id, UnlearnJob.run_id).where(or_(near, passed)).limit(BATCH)).all()
    for job_id, run_id in found:
        with new_session() as session, session.begin():
            session.execute(transitions.lock(run_id))
            _announce(session, job_id, before)
    return len(found)


def sweep_accepted_requests() -> int:
    """Forget idempotency keys whose time is over. Answers how many."""
    with new_session() as session, session.begin():
        return idempotency.sweep(session, BATCH)


def _announce(session: Session, job_id: str, before: timedelta) -> None:
    job = session.get_one(UnlearnJob, job_id)
    if session.scalar(transitions.note_overdue(job_id)) is not None:
        told = transitions.event(job_id, job.tenant_id, "the deadline has passed", level="error", kind="job.overdue")
        session.execute(told)
        session.execute(webhooks.emit("unlearn_job.overdue", job_id))
    elif session.scalar(transitions.note_due_soon(job_id, before)) is not None:
        told = transitions.event(job_id, job.tenant_id, "the deadline is near", level="warn", kind="job.due_soon")
        session.execute(told)
        session.execute(webhooks.emit("unlearn_job.due_soon", job_id))


def _forgotten() -> Select[str]:
    """Runs that have been queued for long although their adapter is free."""
    other = aliased(Run)
    busy = exists().where(other.adapter_id == Run.adapter_id, other.status == "running")
    return select(Run.id).where(Run.status == "queued", Run.publish_after < func.now(), ~busy)


def _bring_back(session: Session, run_id: str) -> None:
    # The row is locked first, so that the decision and the change see the same run.
    run = session.scalar(select(Run).where(Run.id == run_id, transitions.expired()).with_for_update())
    if run is None:
        return
    if run.cancel_requested_at is not None:
        session.execute(transitions.end_lost(run_id, "cancelled"))
        follow(session, run_id, "cancelled", "cancelled; the worker that had it is gone")
        wake_next(session, run.adapter_id)
    elif run.lost_workers >= get_settings().max_lost_workers:
        reason = f"{run.lost_workers + 1} workers were lost while they had this run; it is given up"
        session.execute(transitions.end_lost(run_id, "failed"))
        follow(session, run_id, "failed", reason, error={"code": "worker_lost", "message": reason})
        wake_next(session, run.adapter_id)
    else:
        session.execute(transitions.requeue_lost(run_id))
        follow(session, run_id, "queued", f"the worker of attempt {run.attempt} was lost; queued again", level="warn")
        session.execute(outbox.execute_run(run_id))
    log.warning("lost worker", run=run_id, attempt=run.attempt)


def _publish_again(session: Session, run_id: str) -> None:
    changed = session.scalar(transitions.republished(run_id))
    if changed is None:
        return
    session.execute(outbox.execute_run(run_id))
    jobs = select(UnlearnJob.id, UnlearnJob.tenant_id).where(UnlearnJob.run_id == run_id)
    for job_id, tenant_id in session.execute(jobs):
        message = "no worker has taken the job yet; it was announced again"
        session.execute(transitions.event(job_id, tenant_id, message, level="warn", data={"times": changed}))
