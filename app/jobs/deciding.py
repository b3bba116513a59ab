"""What people decide about a job: whether it may start, and that its deadline is extended."""

from __future__ import annotations

from http import HTTPStatus

from app import outbox
from app.jobs import transitions
from app.jobs.repository import JobRepository
from app.jobs.service import Caller, JobService
from app.kit.calendar import months_after
from app.kit.problems import Conflict, Problem

EXTENSION_MONTHS = 2  # GDPR Art. 12(3)
DENIED = {"code": "denied", "message": "its approval was denied"}


class OwnRequest(Problem):
    """The caller's key submitted the job, so that another one has to decide about it."""

    status, code = HTTPStatus.FORBIDDEN, "own_request"


class Decisions:
    """Decisions about jobs of one tenant."""

    def __init__(self, jobs: JobRepository, service: JobService, caller: Caller) -> None:
        self._jobs = jobs
        self._service = service
        self._caller = caller

    async def approve(self, job_id: str, reason: str | None) -> None:
        """Queue a job that waits for approval. Raises NotFound, OwnRequest, Conflict."""
        run_id = await self._run_to_decide(job_id)
        if not await self._jobs.change(transitions.approve(run_id)):
            raise Conflict("the job does not wait for approval any more")
        await self._jobs.execute(
            transitions.follow(run_id, "queued", **self._decision("approved", reason)),
            transitions.event(job_id, self._caller.tenant_id, "approved", kind="status"),
            outbox.execute_run(run_id),
        )
        self._jobs.record("job.approved", job_id, run=run_id)
        self._jobs.record("job.status", job_id, status="queued", run=run_id)

    async def deny(self, job_id: str, reason: str | None) -> None:
        """End a job that waits for approval. Raises NotFound, OwnRequest, Conflict."""
        run_id = await self._run_to_decide(job_id)
        if not await self._jobs.change(transitions.deny(run_id)):
            raise Conflict("the job does not wait for approval any more")
        await self._jobs.execute(
            transitions.follow(run_id, "cancelled", error=DENIED, **self._decision("denied", reason)),
            transitions.event(job_id, self._caller.tenant_id, "denied", kind="status", level="warn"),
        )
        self._jobs.record("job.denied", job_id, run=run_id)
        self._jobs.record("job.status", job_id, status="cancelled", run=run_id, error=DENIED["code"])

    async def extend(self, job_id: str, reason: str) -> None:
        """Move a job's deadline by two calendar months, once, before it has passed. Raises NotFound, Conflict."""
        job, run, *_ = await self._service.get(job_id)
        due_at = months_after(job.due_at, EXTENSION_MONTHS)
        await self._jobs.execute(transitions.lock(run.id))
        if not await self._jobs.change(transitions.extend(job_id, due_at, reason)):
            raise Conflict(
                "a deadline is extended once, before it has passed, and while the job may still succeed; "
                f"this job is {job.status} and {'was extended before' if job.extended_at else 'was never extended'}"
            )
        message = f"the deadline was extended by {EXTENSION_MONTHS} months"
        await self._jobs.execute(transitions.event(job_id, self._caller.tenant_id, message))
        self._jobs.record("job.extended", job_id, months=EXTENSION_MONTHS, due=due_at.date().isoformat())

    async def _run_to_decide(self, job_id: str) -> str:
        job, run, *_ = await self._service.get(job_id)
        if job.status != "awaiting_approval":
            raise Conflict(f"the job is {job.status} and does not wait for approval")
        if job.submitted_by == self._caller.api_key:
            raise OwnRequest("this key submitted the job; approving and denying take another one")
        return run.id

    def _decision(self, decision: transitions.Decision, reason: str | None) -> dict[str, object]:
        by = self._caller.api_key
        return {"decision": decision, "decided_by": by, "decided_at": transitions.NOW, "decision_reason": reason}
