"""The outside view of jobs and events."""

from __future__ import annotations

from typing import Any

from app.jobs.lookup import JobView
from app.jobs.repository import JobRow
from app.jobs.schemas import Approval, EventRead, JobRead, Progress
from app.jobs.tables import JobEvent, Run, UnlearnJob


def present(row: JobRow | JobView) -> JobRead:
    """A job as it is shown."""
    job, run, adapter, position, wait, overdue, control = row
    return JobRead.model_validate(
        {
            "id": job.id,
            "status": job.status,
            "phase": run.phase,
            "cancel_requested_at": run.cancel_requested_at,
            "adapter": adapter,
            **fresh(job.fresh_lora),
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
            "costs": job.costs,
            "exact": job.exact if job.method.get("type") == "retrain" else False,
            "seed": job.seed,
            "verdict": job.verdict,
            "progress": _progress(run, position, wait),
            "subject_request_id": job.subject_request_id,
            "requested_at": job.requested_at,
            "due_at": job.due_at,
            "overdue": overdue,
            "original_due_at": job.original_due_at,
            "extended_at": job.extended_at,
            "extension_reason": job.extension_reason,
            "submitted_by": job.submitted_by,
            "approval": _approval(job),
            "callback_url": job.callback_url,
            "metadata": job.labels,
            "error": job.error,
            "created_at": job.created_at,
            "started_at": run.started_at,
            "finished_at": job.finished_at,
        }
    )


def fresh(stored: dict[str, Any] | None) -> dict[str, Any]:
    """Base model and shape of the LoRA that a job begins, as they are shown; both None where it begins none."""
    shape = None if stored is None else {name: value for name, value in stored.items() if name != "base_model"}
    return {"base_model": stored and stored["base_model"], "lora": shape}


def present_event(event: JobEvent) -> EventRead:
    """An event as it is shown."""
    return EventRead.model_validate(
        {name: getattr(event, name) for name in EventRead.model_fields if name != "object"}
    )


def retry_after(job: JobRead) -> dict[str, str]:
    """The header that says when to ask for a job again: seldom for one that waits for others, none after its end."""
    if job.status == "awaiting_approval":
        return {"Retry-After": "60"}
    if job.status == "queued":
        return {"Retry-After": str(min(2 * (job.progress.queue_position or 1), 60))}
    if job.status == "running":
        left = job.progress.eta_seconds or 0.0
        return {"Retry-After": str(round(min(max(left / 20, 2.0), 30.0)))}
    return {}


def _approval(job: UnlearnJob) -> Approval | None:
    if not job.policy.get("requires_approval"):
        return None
    given = {"decided_by": job.decided_by, "decided_at": job.decided_at, "reason": job.decision_reason}
    return Approval.model_validate({"status": job.decision or "pending", **given})


def _progress(run: Run, position: int | None, wait: float | None) -> Progress:
    return Progress(
        step=run.step,
        total_steps=run.total_steps,
        percent=round(run.percent, 1),
        eta_seconds=run.eta_seconds if wait is None else round(float(wait)),
        queue_position=position,
    )
