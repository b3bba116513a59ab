"""Which workers are alive, as seen from Postgres."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog
from celery.worker import state
from sqlalchemy import Delete, delete, func
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.exc import SQLAlchemyError

from app.jobs.tables import WorkerHeartbeat
from worker.database import engine

HEARTBEAT_SECONDS = 5.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class WorkerName:
    """A worker and the queue that it serves."""

    name: str
    queue: str


def beat(worker: WorkerName) -> None:
    """Note that a worker is alive. A database that is away for a while is no reason to stop beating."""
    statement = insert(WorkerHeartbeat).values(name=worker.name, queue=worker.queue)
    statement = statement.on_conflict_do_update(
        index_elements=[WorkerHeartbeat.name], set_={"seen_at": func.now(), "queue": worker.queue}
    )
    _write(worker.name, statement)


def pulse(worker: WorkerName, clock: Any) -> None:  # noqa: ANN401 - a process of Celery's
    """Note that a worker is alive, and end it when the process has died that keeps its clock; None where it has none.

    Celery starts dead tasks again, but not that process: the worker would live on, do nothing any more, and look
    well. Whoever watches over it starts it again.
    """
    beat(worker)
    if clock is not None and not clock.is_alive():
        log.error("the clock of this worker has died", worker=worker.name)
        state.should_stop = 1


def fall_silent(name: str) -> None:
    """Note that a worker has stopped."""
    _write(name, delete(WorkerHeartbeat).where(WorkerHeartbeat.name == name))


def _write(name: str, statement: Insert | Delete) -> None:
    try:
        with engine().begin() as connection:
            connection.execute(statement)
    except SQLAlchemyError as error:
        log.warning("heartbeat not written", worker=name, error=type(error).__name__)
