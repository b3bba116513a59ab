"""Celery's tasks: a name, an id, and a call. The work is elsewhere."""

from __future__ import annotations

import os
import socket

from app.outbox import DELETE_BLOBS_TASK, DELETE_CHECKPOINTS_TASK, DELETE_INDEX_TASK, RUN_TASK
from app.settings import Settings, get_settings
from worker import housekeeping, identity_upkeep, opendsr_callbacks, webhooks
from worker.celery_app import celery_app, is_stopping
from worker.execution import execute
from worker.judging import Judge
from worker.lease import Lease
from worker.libraries import loading_libraries


@celery_app.task(name=RUN_TASK)  # type: ignore[untyped-decorator] # celery ships no types
def execute_run(run_id: str) -> None:
    """Carry out a run, if it is to be had."""
    # Nothing is fetched from a hub, cuBLAS repeats itself, and tokenizers start no threads of their own.
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "TOKENIZERS_PARALLELISM": "false",
    }
    execute(run_id, f"{socket.gethostname()}:{os.getpid()}", get_settings(), _carry_out, is_stopping)


def _carry_out(lease: Lease, settings: Settings) -> None:
    with Judge() as judge:  # first of all: it loads its libraries while this process does, on another core
        with loading_libraries():
            # Here and not above: torch belongs into the process of one run, and must not cross a fork.
            from worker.recipe import carry_out

        carry_out(lease, settings, judge)


@celery_app.task(name=DELETE_BLOBS_TASK)  # type: ignore[untyped-decorator] # celery ships no types
def delete_blobs(dataset_id: str) -> None:
    """Remove the bytes of a purged dataset."""
    housekeeping.delete_blobs(dataset_id)


@celery_app.task(name=DELETE_CHECKPOINTS_TASK)  # type: ignore[untyped-decorator] # celery ships no types
def delete_checkpoints(run_id: str) -> None:
    """Remove the checkpoints of an ended run."""
    housekeeping.delete_checkpoints(run_id)


@celery_app.task(name=DELETE_INDEX_TASK)  # type: ignore[untyped-decorator] # celery ships no types
def delete_index_blob(index_id: str) -> None:
    """Remove the bytes of a purged identity index."""
    identity_upkeep.delete_blob(index_id)


@celery_app.task(name="lethe.relay_outbox")  # type: ignore[untyped-decorator] # celery ships no types
def relay_outbox() -> None:
    """Publish what waits in the outbox."""
    housekeeping.relay_outbox(publish)


@celery_app.task(name="lethe.reap_runs")  # type: ignore[untyped-decorator] # celery ships no types
def reap_runs() -> None:
    """Bring back lost runs."""
    housekeeping.reap_runs()


@celery_app.task(name="lethe.purge_datasets")  # type: ignore[untyped-decorator] # celery ships no types
def purge_datasets() -> None:
    """Purge datasets whose time is up."""
    housekeeping.purge_datasets()


@celery_app.task(name="lethe.purge_versions")  # type: ignore[untyped-decorator] # celery ships no types
def purge_versions() -> None:
    """Purge versions whose grace period is over."""
    housekeeping.purge_versions()


@celery_app.task(name="lethe.purge_identity_indexes")  # type: ignore[untyped-decorator] # celery ships no types
def purge_identity_indexes() -> None:
    """Purge identity indexes whose time is up."""
    identity_upkeep.purge_due()


@celery_app.task(name="lethe.sweep_checkpoints")  # type: ignore[untyped-decorator] # celery ships no types
def sweep_checkpoints() -> None:
    """Remove checkpoints that an ended run left."""
    housekeeping.sweep_checkpoints()


@celery_app.task(name="lethe.sweep_blobs")  # type: ignore[untyped-decorator] # celery ships no types
def sweep_blobs() -> None:
    """Remove bytes of purged datasets whose message was lost."""
    housekeeping.sweep_blobs()


@celery_app.task(name="lethe.scrub_keys")  # type: ignore[untyped-decorator] # celery ships no types
def scrub_keys() -> None:
    """Remove what destroyed keys left in the database."""
    housekeeping.scrub_keys()


@celery_app.task(name="lethe.announce_deadlines")  # type: ignore[untyped-decorator] # celery ships no types
def announce_deadlines() -> None:
    """Tell of deadlines that are near or have passed."""
    housekeeping.announce_deadlines()


@celery_app.task(name="lethe.sweep_accepted_requests")  # type: ignore[untyped-decorator] # celery ships no types
def sweep_accepted_requests() -> None:
    """Forget idempotency keys whose time is over."""
    housekeeping.sweep_accepted_requests()


@celery_app.task(name="lethe.announce_opendsr_statuses")  # type: ignore[untyped-decorator] # celery ships no types
def announce_opendsr_statuses() -> None:
    """See which callbacks of OpenDSR have to be told of a new status."""
    opendsr_callbacks.announce()


@celery_app.task(name="lethe.deliver_webhooks")  # type: ignore[untyped-decorator] # celery ships no types
def deliver_webhooks() -> None:
    """Send the webhooks that are due."""
    webhooks.deliver_due()


@celery_app.task(name="lethe.sweep_webhooks")  # type: ignore[untyped-decorator] # celery ships no types
def sweep_webhooks() -> None:
    """Forget old deliveries and secrets."""
    webhooks.sweep()


def publish(task: str, queue: str, argument: str) -> None:
    """Send a message to the broker."""
    celery_app.send_task(task, args=[argument], queue=queue, ignore_result=True)
