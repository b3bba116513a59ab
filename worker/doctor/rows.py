"""Work that nobody does, and rows that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from sqlalchemy import func, select

from app.adapters.tables import Adapter, AdapterVersion
from app.jobs.tables import HEARTBEAT_AGE, OutboxMessage, Run, UnlearnJob, WorkerHeartbeat
from app.outbox import GPU_QUEUE, LIGHT_QUEUE
from worker import housekeeping
from worker.database import new_session
from worker.doctor.findings import Finding

# The light worker looks every few seconds: what is older, nobody has looked at.
PATIENCE = timedelta(seconds=60)
_BUG = "this should not happen; please report it with the job's history"


def undone() -> Iterator[Finding]:
    """Leases that ran out, messages that wait, queues that nobody serves."""
    with new_session() as session:
        late = Run.lease_until < func.now() - PATIENCE
        lost = session.execute(select(Run.id, Run.worker).where(Run.status == "running", late)).all()
        old = OutboxMessage.created_at < func.now() - PATIENCE
        waiting = session.scalar(select(func.count()).select_from(OutboxMessage).where(old)) or 0
        recent = WorkerHeartbeat.seen_at > func.now() - HEARTBEAT_AGE
        served = set(session.scalars(select(WorkerHeartbeat.queue).where(recent)))
        queued = session.scalar(select(func.count()).select_from(Run).where(Run.status == "queued")) or 0
    for run_id, worker in lost:
        yield Finding("expired_lease", run_id, f"held by {worker}", "queued again, or ended", housekeeping.reap_runs)
    if waiting:
        yield Finding("unpublished_messages", "outbox", f"{waiting} messages", "published", _publish_all)
    if LIGHT_QUEUE not in served:
        yield Finding("no_worker", LIGHT_QUEUE, "no light worker lives", "start one: it does all of this by itself")
    if GPU_QUEUE not in served and queued:
        yield Finding("no_worker", GPU_QUEUE, f"no GPU worker lives, {queued} runs wait", "start one")


def contradictions() -> Iterator[Finding]:
    """Jobs and heads that are not as their runs and versions say."""
    newest = select(func.max(AdapterVersion.number)).where(AdapterVersion.adapter_id == Adapter.id).scalar_subquery()
    released = select(AdapterVersion.id).where(AdapterVersion.run_id == UnlearnJob.run_id).exists()
    with new_session() as session:
        jobs = session.execute(
            select(UnlearnJob.id, UnlearnJob.status, Run.status, released)
            .join(Run, Run.id == UnlearnJob.run_id)
            .where((UnlearnJob.status != Run.status) | (released != (UnlearnJob.status == "succeeded")))
        ).all()
        adapters = session.scalars(select(Adapter.id).where(Adapter.head != func.coalesce(newest, 0))).all()
    for job_id, status, of_run, has_version in jobs:
        detail = f"{status}, its run {of_run}, {'with' if has_version else 'without'} a version"
        yield Finding("rows_disagree", job_id, detail, _BUG)
    for adapter_id in adapters:
        yield Finding("rows_disagree", adapter_id, "its head is not its newest version", _BUG)


def _publish_all() -> None:
    # Here and not above: it connects to the broker.
    from worker.tasks import publish

    while housekeeping.relay_outbox(publish):
        pass
