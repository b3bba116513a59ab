"""The outside view of jobs and events."""

from __future__ import annotations

from app.jobs.repository import JobRow
from app.jobs.schemas import EventRead, JobRead, Progress
from app.jobs.tables import JobEvent, Run


def present(row: JobRow) -> JobRead:
    """A job as it is shown."""
    job, run, adapter, position, control = row
    return JobRead.model_validate(
        {
            "id": job.id,
            "status": job.status,
            "phase": run.phase,
            "cancel_requested_at": run.cancel_requested_at,
            "adapter": adapter,
            "source_version": run.source_version,
            "result_version": job.result_version,
            "run_id": run.id,
            "attempt": run.attempt,
            "forget_set": job.forget_set_id,
            "retain_set": job.retain_set_id,
            "holdout_set": job.holdout_set_id,
            "control": control,
            "method": job.method,
            "policy": job.policy,
            "statistics": job.statistics,
            "seed": job.seed,
            "verdict": job.verdict,
            "progress": _progress(run, position if job.status == "queued" else None),
            "subject_request_id": job.subject_request_id,
            "requested_at": job.requested_at,
            "due_at": job.due_at,
            "callback_url": job.callback_url,
            "metadata": job.labels,
            "error": job.error,
            "created_at": job.created_at,
            "started_at": run.started_at,
            "finished_at": job.finished_at,
        }
    )


def present_event(event: JobEvent) -> EventRead:
    """An event as it is shown."""
    return EventRead.model_validate(
        {name: getattr(event, name) for name in EventRead.model_fields if name != "object"}
    )


def _progress(run: Run, position: int | None) -> Progress:
    return Progress(
        step=run.step,
        total_steps=run.total_steps,
        percent=round(run.percent, 1),
        eta_seconds=run.eta_seconds,
        queue_position=position,
    )
