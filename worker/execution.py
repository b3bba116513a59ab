"""A run's life on this worker: claim it, carry it out, and end it in a way that everybody can see."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import structlog
from sqlalchemy.exc import InterfaceError, OperationalError

from app.kit.logs import places
from app.kit.storage import is_storage_away
from app.settings import Settings
from worker.errors import JobError
from worker.lease import Cancelled, Claim, Fenced, HandBack, Lease, claim

log = structlog.get_logger(__name__)
Recipe = Callable[[Lease, Settings], None]


def execute(
    run_id: str,
    worker: str,
    settings: Settings,
    recipe: Recipe,
    is_stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Take a run if it is to be had, and bring it to its end.

    Args:
        recipe: does the work; `worker.recipe.carry_out`.
        is_stopping: whether this worker was told to stop.
    """
    lease_time = timedelta(seconds=settings.lease_seconds)
    held = claim(run_id, worker, lease_time)
    if held is None:
        log.info("run not taken", run=run_id)
        return
    log.info("run started", run=run_id, attempt=held.attempt)
    with Lease(held, lease_time, settings.heartbeat_seconds, is_stopping) as lease:
        try:
            _end(lease, settings, recipe)
        except Fenced:
            log.warning("run left to its new holder", run=run_id, attempt=held.attempt)
        except Exception as error:  # let through, it would be printed by Celery with its text
            log_crash(held, error)


def _end(lease: Lease, settings: Settings, recipe: Recipe) -> None:
    held = lease.claim
    try:
        recipe(lease, settings)
        log.info("run ended", run=held.run_id, attempt=held.attempt)
    except Fenced:
        raise
    except Cancelled:
        lease.end("cancelled", "cancelled")
        log.info("run cancelled", run=held.run_id)
    except HandBack:
        lease.hand_back()
        log.info("run handed back", run=held.run_id)
    except (OperationalError, InterfaceError) as error:
        # The database was away, so that the end could not be written either: the lease runs out, and the run comes
        # back when the database does.
        log_crash(held, error)
    except Exception as error:  # whatever it is, the job must not hang
        if is_storage_away(error):
            # A person may make room. Until then the run is tried again once a minute, from its last checkpoint.
            log_crash(held, error)
            lease.put_off("the storage is full or cannot be used; tried again in a minute")
        else:
            _explain(lease, error)


def _explain(lease: Lease, error: Exception) -> None:
    held = lease.claim
    if not isinstance(error, JobError):
        log_crash(held, error)
        _fail(lease, "internal_error", f"the worker failed ({type(error).__name__}); its log names the place")
        return
    cause = error.__cause__
    if cause is not None:
        log.warning("cause", run=held.run_id, error=type(cause).__name__, places=places(cause))
    _fail(lease, error.code, error.message)


def _fail(lease: Lease, code: str, message: str) -> None:
    lease.end("failed", message, error={"code": code, "message": message})
    log.error("run failed", run=lease.claim.run_id, code=code)


def log_crash(held: Claim, error: Exception) -> None:
    """Log what broke: type and places, never the text, which may quote a record."""
    log.error("run crashed", run=held.run_id, attempt=held.attempt, error=type(error).__name__, places=places(error))
