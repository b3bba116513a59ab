"""A worker's hold on a run: claimed once, renewed by a thread, and lost for good when a renewal is refused.

Every write that a worker makes goes through here and carries the attempt that it holds. A worker that slept past
its lease finds its writes refused, whoever has the run by then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningUpdate

from app import outbox
from app.audit.record import append
from app.jobs import transitions
from app.jobs.tables import Run, UnlearnJob
from app.jobs.transitions import FinalStatus, Kind, Level
from worker.database import new_session

log = structlog.get_logger(__name__)
_LEVELS: dict[FinalStatus, Level] = {
    "succeeded": "info",
    "gate_failed": "warn",
    "failed": "error",
    "cancelled": "info",
}


class Stop(Exception):
    """The run must not go on in this process."""


class Fenced(Stop):
    """The lease was lost; nothing more may be written."""


class Cancelled(Stop):
    """Someone asked for the run to be cancelled."""


class HandBack(Stop):
    """This worker was told to stop; another one will take the run."""


@dataclass(frozen=True)
class Claim:
    """A run that this process holds. `started_at` is the same for all attempts, until the ended run is retried."""

    run_id: str
    attempt: int
    tenant_id: str
    adapter_id: str
    started_at: datetime


def claim(run_id: str, worker: str, lease: timedelta) -> Claim | None:
    """Take a queued run, or nothing: it is taken, ended, cancelled, or its adapter has another active run."""
    try:
        with new_session() as session, session.begin():
            run = session.scalars(transitions.claim(run_id, worker, lease)).one_or_none()
            if run is None:
                return None
            follow(session, run.id, "running", f"started, attempt {run.attempt}")
            assert run.started_at is not None  # noqa: S101 - set by the claim
            return Claim(run.id, run.attempt, run.tenant_id, run.adapter_id, run.started_at)
    except IntegrityError:
        # Two runs of one adapter claimed at the same moment: the index let only the other one through.
        return None


class Lease:
    """The hold itself. A context manager: the renewing thread lives as long as the block."""

    def __init__(
        self, held: Claim, lease: timedelta, heartbeat: float, is_stopping: Callable[[], bool] = lambda: False
    ) -> None:
        self.claim = held
        self._lease = lease
        self._heartbeat = heartbeat
        self._is_stopping = is_stopping
        self._patience = 0.0
        self._told_to_stop: float | None = None
        self._ended = threading.Event()
        self._fenced = threading.Event()
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Raise when the run must not go on here: `Fenced`, `Cancelled` or `HandBack`."""
        self.check_hold()
        if self.stopping and time.monotonic() - (self._told_to_stop or 0.0) >= self._patience:
            raise HandBack

    def check_hold(self) -> None:
        """Raise when the run must not go on anywhere under this attempt: `Fenced` or `Cancelled`."""
        if self._fenced.is_set():
            raise Fenced
        if self._cancelled.is_set():
            raise Cancelled

    @property
    def stopping(self) -> bool:
        """Whether this worker was told to stop."""
        if self._told_to_stop is None and self._is_stopping():
            self._told_to_stop = time.monotonic()
        return self._told_to_stop is not None

    @contextmanager
    def postponing(self, seconds: float) -> Iterator[None]:
        """Within the block, `HandBack` is raised so much later only: there is something to be saved first."""
        self._patience = seconds
        try:
            yield
        finally:
            self._patience = 0.0

    def progress(self, **values: object) -> None:
        """Write phase and progress, and read whether to go on. Raises as `check` does."""
        with new_session() as session, session.begin():
            self._read(session.scalar(self._guarded(**values)))
        self.check()

    def event(self, message: str, **data: Any) -> None:  # noqa: ANN401 - any JSON value
        """Add a line to the history of the run's jobs. Raises Fenced when the hold is lost."""
        with new_session() as session, session.begin():
            self._require(session)
            _add_events(session, self.claim.run_id, message, kind="message", data=data)

    def warn(self, message: str) -> None:
        """Add a line to the history that a person should read. Raises Fenced when the hold is lost."""
        with new_session() as session, session.begin():
            self._require(session)
            _add_events(session, self.claim.run_id, message, kind="message", data={}, level="warn")

    def metrics(self, message: str, **data: float) -> None:
        """Add a line of numbers to the history. Raises Fenced when the hold is lost."""
        with new_session() as session, session.begin():
            self._require(session)
            _add_events(session, self.claim.run_id, message, kind="metrics", data=data)

    def store(self, row: object, *, with_it: Callable[[Session], None] = lambda _session: None) -> None:
        """Add a row that belongs to this attempt, with what `with_it` adds. Raises Fenced when the hold is lost."""
        with new_session() as session, session.begin():
            self._require(session)
            session.add(row)
            with_it(session)

    def end(
        self,
        status: FinalStatus,
        message: str,
        *,
        with_it: Callable[[Session], None] = lambda _session: None,
        **job_values: object,
    ) -> None:
        """End the run and its jobs in one transaction, with what `with_it` adds to it.

        Args:
            with_it: called inside the transaction once the hold is certain.
            job_values: columns of the jobs, such as their verdict.

        Raises:
            Fenced: the hold is lost; nothing was written.
        """
        with new_session() as session, session.begin():
            run = session.scalars(transitions.finish(self.claim.run_id, self.claim.attempt, status)).one_or_none()
            if run is None:
                raise Fenced
            follow(session, run.id, status, message, level=_LEVELS[status], **job_values)
            with_it(session)
            wake_next(session, run.adapter_id)

    def hand_back(self) -> None:
        """Queue the run again for another worker. Raises Fenced when the hold is lost."""
        self._give_up("handed back by a worker that was told to stop", "info")

    def put_off(self, reason: str) -> None:
        """Queue the run again for later: nobody is told of it before the reaper does. Raises Fenced."""
        self._give_up(reason, "warn", at_once=False)

    def _give_up(self, reason: str, level: Level, *, at_once: bool = True) -> None:
        with new_session() as session, session.begin():
            run = session.scalars(transitions.hand_back(self.claim.run_id, self.claim.attempt)).one_or_none()
            if run is None:
                raise Fenced
            if run.cancel_requested_at is not None:
                # Asked for after the last look: nobody would ever claim the run again.
                session.execute(transitions.cancel_queued(run.id))
                follow(session, run.id, "cancelled", "cancelled")
                wake_next(session, run.adapter_id)
                return
            follow(session, run.id, "queued", reason, level=level)
            if at_once:
                session.execute(outbox.execute_run(run.id))

    def renew(self) -> None:
        """Renew the lease once, as the thread does on its clock. What is learned by it, `check` tells."""
        with new_session() as session, session.begin():
            self._read(session.scalar(transitions.renew(self.claim.run_id, self.claim.attempt, self._lease)))

    def _require(self, session: Session) -> None:
        # Locks the row until the transaction ends, so that nobody takes the run in between.
        renewed = session.scalar(transitions.renew(self.claim.run_id, self.claim.attempt, self._lease))
        self._read(renewed)
        if renewed is None:
            raise Fenced

    def _guarded(self, **values: object) -> ReturningUpdate[bool]:
        return transitions.progress(self.claim.run_id, self.claim.attempt, **values)

    def _read(self, cancel_requested: bool | None) -> None:
        if cancel_requested is None:
            self._fenced.set()
        elif cancel_requested:
            self._cancelled.set()

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self._heartbeat):
            try:
                self.renew()
            except SQLAlchemyError as error:
                # The lease itself bounds how long this may go on; the next renewal tells whether it was too long.
                log.warning("lease not renewed", run=self.claim.run_id, error=type(error).__name__)
            if self._fenced.is_set():
                log.warning("lease lost", run=self.claim.run_id, attempt=self.claim.attempt)
                return


def wake_next(session: Session, adapter_id: str) -> None:
    """Publish the oldest queued run of an adapter: it had to wait for the one that just ended."""
    waiting = session.scalar(
        select(Run.id).where(Run.adapter_id == adapter_id, Run.status == "queued").order_by(Run.created_at).limit(1)
    )
    if waiting is not None:
        session.execute(outbox.execute_run(waiting))


def follow(
    session: Session, run_id: str, status: str, message: str, *, level: Level = "info", **job_values: object
) -> None:
    """Give the jobs of a run its new status, with a line in their history. A run that ended needs no checkpoint."""
    if status in transitions.FINAL:
        session.execute(outbox.delete_checkpoints(run_id))
    for job_id, tenant_id in session.execute(transitions.follow(run_id, status, **job_values)):
        data = {"status": status}
        session.execute(transitions.event(job_id, tenant_id, message, level=level, kind="status", data=data))
        append(session, tenant_id, "job.status", "unlearn_job", job_id, _outcome(run_id, status, job_values))


def _outcome(run_id: str, status: str, job_values: dict[str, Any]) -> dict[str, Any]:
    """A new status as the audit chain tells it: the reason by its code, since its message may say more."""
    told = {name: job_values[name] for name in ("verdict", "result_version") if job_values.get(name) is not None}
    error = job_values.get("error")
    return {"status": status, "run": run_id, **told} | ({"error": error["code"]} if error else {})


def _add_events(
    session: Session, run_id: str, message: str, *, kind: Kind, data: dict[str, Any], level: Level = "info"
) -> None:
    jobs = select(UnlearnJob.id, UnlearnJob.tenant_id).where(UnlearnJob.run_id == run_id)
    for job_id, tenant_id in session.execute(jobs):
        session.execute(transitions.event(job_id, tenant_id, message, level=level, kind=kind, data=data))
