"""Accepting jobs and steering them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any

from anyio import to_thread
from sqlalchemy import Insert
from sqlalchemy.ext.asyncio import AsyncSession

from app import outbox
from app.adapters.references import HEAD
from app.adapters.repository import AdapterRepository
from app.adapters.tables import Adapter, AdapterVersion
from app.datasets.repository import DatasetRepository
from app.datasets.service import DatasetService
from app.jobs import acceptance, fresh, grounds, resolve, transitions
from app.jobs.choosing import Choice, Held, choose
from app.jobs.grounds import Grounds
from app.jobs.lookup import JobView
from app.jobs.repository import JobRepository, JobRow
from app.jobs.schemas import JobCosts, JobCreate, JobStatistics
from app.jobs.sets import GivenSet, GivenSets, SetReader
from app.jobs.tables import UnlearnJob
from app.kit.calendar import months_after
from app.kit.driver import Asked
from app.kit.ids import new_id
from app.kit.problems import Conflict, NotFound, Problem, invalid_field
from app.methods import (
    LEAST_FOR_MEMBERSHIP,
    AutoRequest,
    Method,
    Policy,
    Recipe,
    RetrainRequest,
    WantedMethod,
)
from app.settings import Settings
from app.webhooks import events as webhooks
from app.webhooks.service import WebhookService, check_callback


class DuplicateRequest(Problem):
    """A person's request has a job on the adapter already."""

    status, code = HTTPStatus.CONFLICT, "duplicate_request"


@dataclass(frozen=True)
class Caller:
    """Who asks: a tenant, by one of its API keys."""

    tenant_id: str
    api_key: str


@dataclass(frozen=True)
class Control:
    """The version that a job is measured against, and the name of its adapter."""

    adapter: str
    version: AdapterVersion

    @property
    def name(self) -> str:
        """As it is shown."""
        return f"{self.adapter}@{self.version.number}"


@dataclass(frozen=True)
class Resolved:
    """A request, checked, with everything in it that was open settled but the seed."""

    grounds: Grounds
    control: Control | None
    method: Method
    costs: JobCosts | None
    policy: Policy
    sets: GivenSets
    statistics: JobStatistics
    requested_at: datetime
    due_at: datetime


@dataclass(frozen=True)
class Storing:
    """A job on its way into the database: its row, how it is shown once it is there, and what was resolved for it."""

    row: dict[str, Any]
    view: JobView
    found: Resolved
    asked: Asked


class JobService:
    """Jobs of one tenant."""

    def __init__(
        self,
        session: AsyncSession,
        jobs: JobRepository,
        adapters: AdapterRepository,
        datasets: DatasetRepository,
        uploads: DatasetService,
        callbacks: WebhookService,
        settings: Settings,
        caller: Caller,
    ) -> None:
        self._session = session
        self._jobs = jobs
        self._adapters = adapters
        self._datasets = datasets
        self._uploads = uploads
        self._callbacks = callbacks
        self._settings = settings
        self._caller = caller
        self._tenant_id = caller.tenant_id

    async def ask(self, request: JobCreate) -> Asked | None:
        """Ask for what a request names, for `look_up` to read; None where it begins an adapter, which takes more."""
        return await self._ask(request, request.adapter, hold=True) if request.adapter is not None else None

    async def look_up(self, request: JobCreate, asked: Asked | None = None, *, hold: bool = True) -> Grounds:
        """Find what a request names.

        Args:
            asked: by `ask`, where that was done before.
            hold: keep others from purging its datasets until the transaction ends.

        Raises:
            Invalid: there is no such adapter or base model, or its `callback_url` is none to which requests are sent.
            DuplicateRequest: its `subject_request_id` has a job on the adapter, live or succeeded.
            Conflict: the name of its `result_adapter` is not free.
        """
        fresh.check_fields(request)
        found = await self._find(request, asked, hold=hold)
        if found is None:
            raise invalid_field("/adapter", "no adapter of this name is registered; GET /adapters lists them")
        if request.callback_url is not None:
            check_callback(request.callback_url, "/callback_url", self._settings)
        # Asked before the sets: those of a request that has succeeded are destroyed.
        if found.before is not None:
            raise _duplicate(found.before)
        if request.base_model is not None:
            await fresh.check_free(self._session, self._tenant_id, found.adapter)
        return found

    async def _find(self, request: JobCreate, asked: Asked | None, *, hold: bool) -> Grounds | None:
        if request.adapter is not None:
            found = await grounds.read(asked or await self._ask(request, request.adapter, hold=hold))
            return found if found and found.adapter.head else None
        savepoint = await self._session.begin_nested()
        name = await fresh.reserve(self._session, self._tenant_id, request)
        found = await grounds.read(await self._ask(request, name, hold=hold))
        # A dry run leaves nothing.
        await (savepoint.commit() if hold else savepoint.rollback())
        return found

    async def _ask(self, request: JobCreate, adapter: str, *, hold: bool) -> Asked:
        named = [each for each in (request.forget_set, request.retain_set, request.holdout_set) if each is not None]
        return await grounds.ask(
            self._session,
            self._tenant_id,
            adapter=adapter,
            datasets=[each for each in named if isinstance(each, str)],
            default=request.retain_set is None,
            subject_request_id=request.subject_request_id,
            hold=hold,
        )

    async def create(self, request: JobCreate, found: Grounds) -> JobView:
        """Check a request, resolve it, and store job, run, event and outbox message. Raises as its three parts do."""
        storing = await self.store(request, await self.accept(request, found))
        await self.confirm(storing)
        return storing.view

    async def accept(self, request: JobCreate, found: Grounds) -> Resolved:
        """Check a request and resolve it, and store what came inside it. Raises Invalid."""
        resolved = await self.resolve(request, found, SetReader(self._uploads))
        if request.callback_url is not None:
            await self._callbacks.accept(request.callback_url, "/callback_url")
        return resolved

    async def store(self, request: JobCreate, found: Resolved) -> Storing:
        """Have job, run, event and outbox message stored. It is not known yet that they are."""
        row = self._row(request, found)
        asked = await acceptance.store(self._session, row)
        adapter, control = found.grounds.adapter.name, found.control.name if found.control else None
        view = acceptance.shown(row, found.grounds.moment, adapter=adapter, control=control)
        return Storing(row, view, found, asked)

    async def confirm(self, storing: Storing) -> None:
        """See that a job was stored, and have the audit chain say so.

        Raises:
            DuplicateRequest: its `subject_request_id` has a job on the adapter by now.
            Conflict: it had one that has just ended, or another job begins its fresh adapter.
        """
        job = storing.row
        if await storing.asked.one() is None:
            await self._refuse_duplicate(job["adapter_id"], job["subject_request_id"])
            if job["fresh_lora"] is not None:
                raise fresh.overtaken()
            raise Conflict("a job of this subject_request_id has just ended; repeat this request")
        self._record_accepted(job, storing.found)
        if job["status"] == "awaiting_approval":
            await self._jobs.execute(webhooks.emit("unlearn_job.awaiting_approval", job["id"]))
            self._jobs.record("job.status", job["id"], status="awaiting_approval", run=job["run_id"])

    def _row(self, request: JobCreate, found: Resolved) -> dict[str, Any]:
        return {
            "id": new_id("job"),
            "tenant_id": self._tenant_id,
            "adapter_id": found.grounds.adapter.id,
            "run_id": new_id("run"),
            "status": "awaiting_approval" if found.policy.requires_approval else "queued",
            "forget_set_id": found.sets.forget.dataset.id,
            "retain_set_id": found.sets.retain.dataset.id,
            "holdout_set_id": found.sets.holdout.dataset.id if found.sets.holdout else None,
            "control_version_id": found.control.version.id if found.control else None,
            "method": found.method.model_dump(),
            "policy": found.policy.model_dump(),
            "statistics": found.statistics.model_dump(),
            "costs": found.costs.model_dump() if found.costs else None,
            "fresh_lora": fresh.stored(request),
            "seed": request.seed if request.seed is not None else secrets.randbelow(2**31),
            "subject_request_id": request.subject_request_id,
            "requested_at": found.requested_at,
            "due_at": found.due_at,
            "callback_url": request.callback_url,
            "metadata": dict(request.metadata),
            "submitted_by": self._caller.api_key,
        }

    async def resolve(self, request: JobCreate, found: Grounds, reader: SetReader) -> Resolved:
        """Check a request and settle what it leaves open. Raises Invalid."""
        base_knows = found.adapter.fresh
        policy = resolve.policy(
            request.policy, require_approval=self._settings.require_approval, base_knows=base_knows
        )
        control = await self._control(request.control, found.adapter)
        sets = await reader.read(request, found)
        choice = await self._choose(request.method, found, sets, policy)
        method = choice.method
        # One turn in a thread for all that reads the records.
        statistics = await to_thread.run_sync(
            lambda: sets.examine(Path(found.directory), method.max_length, stored=reader.keeps)
        )
        if not base_knows:
            _require_holdout(request, sets.holdout)
        self._check_tokens(statistics)
        at = request.requested_at or datetime.now(UTC)
        # A month is one where the person asked; both times are shown as they are read later.
        times = at.astimezone(UTC), months_after(at, 1).astimezone(UTC)
        return Resolved(found, control, method, choice.costs, policy, sets, statistics, *times)

    async def _choose(self, wanted: WantedMethod, found: Grounds, sets: GivenSets, policy: Policy) -> Choice:
        """The method of a job, which may be left to the service."""
        adapter = found.adapter
        if not isinstance(wanted, RetrainRequest | AutoRequest):
            unlearning = fresh.unanchored(wanted) if adapter.fresh else wanted
            return Choice(unlearning.resolve(sets.forget.dataset.records), None)
        held = None
        dataset = await self._datasets.by_id(adapter.training_set_id) if adapter.training_set_id else None
        if dataset is not None and dataset.purged_at is None:
            recipe = Recipe.model_validate(adapter.recipe)
            held = Held(dataset, recipe, self._uploads.vault, Path(found.directory))
        return await to_thread.run_sync(choose, wanted, adapter, held, sets, policy)

    async def get(self, job_id: str) -> JobRow:
        """A job with its run. Raises NotFound."""
        row = await self._jobs.by_id(job_id)
        if row is None:
            raise no_such_job()
        return row

    async def cancel(self, job_id: str) -> None:
        """End a job that waits, or ask the worker that runs it to stop. Repeating it does no harm.

        Raises:
            NotFound: no such job.
            Conflict: the job has ended.
        """
        job, run, *_ = await self.get(job_id)
        # Twice, since a worker may take the run or hand it back between the two questions.
        for _ in range(2):
            if await self._jobs.change(transitions.cancel_queued(run.id)):
                follow = transitions.follow(run.id, "cancelled")
                await self._jobs.execute(follow, self._event(job, "cancelled before it was started"))
                self._jobs.record("job.cancel_requested", job.id, run=run.id)
                self._jobs.record("job.status", job.id, status="cancelled", run=run.id)
                if run.attempt:  # a worker had it before
                    await self._jobs.execute(outbox.delete_checkpoints(run.id))
                return
            if await self._jobs.change(transitions.request_cancel(run.id)):
                await self._jobs.execute(self._event(job, "cancelling was asked for"))
                self._jobs.record("job.cancel_requested", job.id, run=run.id)
                return
        job, *_ = await self.get(job_id)
        raise Conflict(f"the job has ended ({job.status}); there is nothing to cancel")

    async def retry(self, job_id: str) -> None:
        """Queue a job again that ended without success.

        Raises:
            NotFound: no such job.
            Conflict: the job has not ended, has succeeded, its records or its control were purged, or another job
                begins its fresh adapter.
            DuplicateRequest: its person's request has another job by now.
        """
        job, run, *_ = await self.get(job_id)
        # By id, as everybody locks several of them.
        for dataset_id in sorted(filter(None, (job.forget_set_id, job.retain_set_id, job.holdout_set_id))):
            dataset = await self._datasets.by_id(dataset_id, lock=True)
            if dataset is None or dataset.purged_at is not None:
                raise Conflict(f"dataset {dataset_id} was purged; send a new request with the records")
        control = await self._adapters.hold(job.control_version_id) if job.control_version_id else None
        if control is not None and control.status == "purged":
            raise Conflict("the version that is its control was purged; send a new request")
        approved = job.decision == "approved" or not job.policy.get("requires_approval")
        if not await self._jobs.change(transitions.retry(run.id, approved=approved)):
            raise Conflict(f"the job is {job.status}; only a gate_failed, failed or cancelled job can be retried")
        await self._refuse_duplicate(job.adapter_id, job.subject_request_id)
        status = "queued" if approved else "awaiting_approval"
        undecided = {} if approved else dict.fromkeys(("decision", "decided_by", "decided_at", "decision_reason"))
        if not await self._jobs.revive(transitions.follow(run.id, status, verdict=None, error=None, **undecided)):
            if job.fresh_lora is not None:
                raise fresh.overtaken()
            raise DuplicateRequest("its subject_request_id has another job on this adapter by now")
        await self._jobs.execute(self._event(job, "queued again" if approved else "waits for approval again"))
        if approved:
            await self._jobs.execute(outbox.execute_run(run.id))
        self._jobs.record("job.retried", job.id, run=run.id)
        self._jobs.record("job.status", job.id, status=status, run=run.id)

    def _check_tokens(self, statistics: JobStatistics) -> None:
        tokens, most = statistics.forget.tokens, self._settings.max_forget_tokens
        if tokens is not None and tokens.total > most:
            about = "about " if tokens.sampled else ""
            raise invalid_field("/forget_set", f"has {about}{tokens.total} tokens, more than {most}; split it")

    async def _refuse_duplicate(self, adapter_id: str, subject_request_id: str | None) -> None:
        if subject_request_id is None:
            return
        before = await self._jobs.of_request(adapter_id, subject_request_id)
        if before is not None:
            raise _duplicate(before)

    def _record_accepted(self, job: dict[str, Any], found: Resolved) -> None:
        self._jobs.record(
            "job.accepted",
            job["id"],
            run=job["run_id"],
            adapter=job["adapter_id"],
            forget_set=job["forget_set_id"],
            retain_set=job["retain_set_id"],
            holdout_set=job["holdout_set_id"],
            control=job["control_version_id"],
            **({"base_model": found.grounds.adapter.base_model_id} if job["fresh_lora"] else {}),
            method=job["method"]["type"],
            policy={"name": job["policy"]["name"], "version": job["policy"]["version"]},
            seed=job["seed"],
        )

    async def _control(self, wanted: str | None, adapter: Adapter) -> Control | None:
        """The version that a job names as its control."""
        if wanted is None:
            return None
        if adapter.fresh:
            raise invalid_field("/control", "cannot be had where the base model itself knows the records")
        name, _, number = wanted.partition("@")
        control = await self._adapters.by_name(name)
        if control is None:
            raise invalid_field("/control", "no adapter of this name is registered; GET /adapters lists them")
        if control.id == adapter.id:
            raise invalid_field("/control", "is the adapter itself, which has seen the records")
        if control.base_model_id != adapter.base_model_id:
            raise invalid_field("/control", "is on another base model")
        named = await self._adapters.referenced(control, number or HEAD)
        # Held until the job is stored, so that nobody purges it in between.
        version = await self._adapters.hold(named.id) if named else None
        if version is None or version.status == "purged":
            raise invalid_field("/control", "has no such version; GET /adapters/{name}/versions lists them")
        head = await self._adapters.version(adapter.id, adapter.head)
        if head is not None and head.weights_sha256 == version.weights_sha256:
            raise invalid_field("/control", "has the very weights of the adapter, which has seen the records")
        return Control(name, version)

    def _event(self, job: UnlearnJob, message: str) -> Insert:
        return transitions.event(job.id, job.tenant_id, message, kind="status")


def _require_holdout(request: JobCreate, holdout: GivenSet | None) -> None:
    if not resolve.wants_holdout(request.policy):
        return
    if holdout is None:
        raise invalid_field(
            "/holdout_set", "is needed by the limit on membership: look-alike records that were never trained on"
        )
    if holdout.dataset.records < LEAST_FOR_MEMBERSHIP:
        raise invalid_field("/holdout_set", f"needs at least {LEAST_FOR_MEMBERSHIP} records to judge membership by")


def _duplicate(before: str) -> DuplicateRequest:
    return DuplicateRequest(
        f"this subject_request_id has a job on this adapter: {before}",
        headers={"Location": f"/unlearn-jobs/{before}"},
    )


def no_such_job() -> NotFound:
    """There is none, or it is another tenant's."""
    return NotFound("there is no job with this id; GET /unlearn-jobs lists them")
