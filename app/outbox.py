"""Messages to workers, written in the transaction that makes them true.

The light worker publishes them to Celery and deletes them. A message carries an id and nothing else: what is to be
done stands in Postgres, so a message too many, or one too late, does no harm.
"""

from __future__ import annotations

from sqlalchemy import Insert, insert

from app.jobs.tables import OutboxMessage

GPU_QUEUE = "gpu"
LIGHT_QUEUE = "default"
RUN_TASK = "lethe.run"
DELETE_BLOBS_TASK = "lethe.delete_blobs"
DELETE_CHECKPOINTS_TASK = "lethe.delete_checkpoints"
DELETE_INDEX_TASK = "lethe.delete_index_blob"


def execute_run(run_id: str) -> Insert:
    """Have a GPU worker look at a run."""
    return insert(OutboxMessage).values(task=RUN_TASK, queue=GPU_QUEUE, argument=run_id)


def delete_blobs(dataset_id: str) -> Insert:
    """Have the light worker remove the blobs of a purged dataset."""
    return insert(OutboxMessage).values(task=DELETE_BLOBS_TASK, queue=LIGHT_QUEUE, argument=dataset_id)


def delete_checkpoints(run_id: str) -> Insert:
    """Have the light worker remove the checkpoints of a run that has ended."""
    return insert(OutboxMessage).values(task=DELETE_CHECKPOINTS_TASK, queue=LIGHT_QUEUE, argument=run_id)


def delete_index_blob(index_id: str) -> Insert:
    """Have the light worker remove the blob of a purged identity index."""
    return insert(OutboxMessage).values(task=DELETE_INDEX_TASK, queue=LIGHT_QUEUE, argument=index_id)
