"""Accepting jobs and steering them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Insert
from sqlalchemy.exc import IntegrityError

from app import outbox
from app.adapters.references import HEAD
from app.adapters.repository import AdapterRepository
from app.adapters.tables import Adapter, AdapterVersion
from app.base_models.tables import BaseModelRow
from app.datasets.repository import DatasetRepository
from app.datasets.service import DatasetService
from app.jobs import resolve, transitions
from app.jobs.repository import JobRepository, JobRow
from app.jobs.schemas import JobCreate, JobStatistics
from app.jobs.sets import GivenSet, GivenSets, SetReader
from app.jobs.tables import Run, UnlearnJob
from app.kit.calendar import months_after
from app.kit.ids import new_id
from app.kit.problems import Conflict, NotFound, invalid_field
from app.methods import LEAST_FOR_MEMBERSHIP, Method, Policy
from app.settings import Settings
from app.webhooks.service import WebhookService, check_callback


class AlreadyAccepted(Exception):
    """This idempotency key has made a job before."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


@dataclass(frozen=True)
class Resolved:
    """A request, checked, with everything in it that was open settled but the seed."""

    adapter: Adapter
    base: BaseModelRow
    control: AdapterVersion | None
    method: Method
    policy: Policy
    sets: GivenSets
    statistics: JobStatistics
    requested_at: datetime
    due_at: datetime


class JobService:
    """Jobs of one tenant."""

    def __init__(
        self,
        jobs: JobRepository,
        adapters: AdapterRepository,
        datasets: DatasetRepository,
        uploads: DatasetService,
        callbacks: WebhookService,
        settings: Settings,
        tenant_id: str,
    ) -> None:
        self._jobs = jobs
        self._adapters = adapters
        self._datasets = datasets
        self._uploads = uploads
        self._callbacks = callbacks
        self._settings = settings
        self._tenant_id = tenant_id

    async def create(self, request: JobCreate, idempotency_key: str | None) -> str:
        """Check a request, resolve it, and store job, run, event and outbox message. Answers the job's id.

        Raises:
            Invalid: something in the request cannot be accepted.
            AlreadyAccepted: the same request was accepted under this key before.
        """
        digest = resolve.request_digest(request, self._settings.pepper)
        await self._replay(idempotency_key, digest)
        found = await self.resolve(request, SetReader(self._datasets, self._uploads))
        if request.callback_url is not None:
            await self._callbacks.accept(request.callback_url, "/callback_url")
        run = Run(id=new_id("run"), tenant_id=self._tenant_id, adapter_id=found.adapter.id)
        job = UnlearnJob(
            id=new_id("job"),
            tenant_id=self._tenant_id,
            adapter_id=found.adapter.id,
            run_id=run.id,
            forget_set_id=found.sets.forget.dataset.id,
            retain_set_id=found.sets.retain.dataset.id,
            holdout_set_id=found.sets.holdout.dataset.id if found.sets.holdout else None,
            control_version_id=found.control.id if found.control else None,
            method=found.method.model_dump(),
            policy=found.policy.model_dump(),
            statistics=found.statistics.model_dump(),
            seed=request.seed if request.seed is not None else secrets.randbelow(2**31),
            subject_request_id=request.subject_request_id,
            requested_at=found.requested_at,
            due_at=found.due_at,
            callback_url=request.callback_url,
            labels=dict(request.metadata),
            idempotency_key=idempotency_key,
            request_digest=digest if idempotency_key else None,
        )
        await self._store(run, job)
        return job.id

    async def resolve(self, request: JobCreate, reader: SetReader) -> Resolved:
        """Check a request and settle what it leaves open. Raises Invalid when something in it cannot be accepted."""
        adapter = await self._adapters.by_name(request.adapter)
        if adapter is None:
            raise invalid_field("/adapter", "no adapter of this name is registered; GET /adapters lists them")
        if request.callback_url is not None:
            check_callback(request.callback_url, "/callback_url", self._settings)
        policy = resolve.policy(request.policy)
        control = await self._control(request.control, adapter)
        sets = await reader.read(request, adapter.default_retain_set_id)
        _require_holdout(request, sets.holdout)
        base = await self._adapters.base_of(adapter)
        method = request.method.resolve(sets.forget.dataset.records)
        statistics = await sets.statistics(Path(base.directory), method.max_length, stored=reader.keeps)
        self._check_tokens(statistics)
        at = request.requested_at or datetime.now(UTC)
        return Resolved(adapter, base, control, method, policy, sets, statistics, at, months_after(at, 1))

    async def get(self, job_id: str) -> JobRow:
        """A job with its run. Raises NotFound."""
        row = await self._jobs.by_id(job_id)
        if row is None:
            raise NotFound("there is no job with this id; GET /unlearn-jobs lists them")
        return row

    async def cancel(self, job_id: str) -> None:
        """End a queued job, or ask the worker that runs it to stop. Repeating it does no harm.

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
            Conflict: the job has not ended, has succeeded, or its records or its control were purged.
        """
        job, run, *_ = await self.get(job_id)
        for dataset_id in filter(None, (job.forget_set_id, job.retain_set_id, job.holdout_set_id)):
            dataset = await self._datasets.by_id(dataset_id, lock=True)
            if dataset is None or dataset.purged_at is not None:
                raise Conflict(f"dataset {dataset_id} was purged; send a new request with the records")
        control = await self._adapters.hold(job.control_version_id) if job.control_version_id else None
        if control is not None and control.status == "purged":
            raise Conflict("the version that is its control was purged; send a new request")
        if not await self._jobs.change(transitions.retry(run.id)):
            raise Conflict(f"the job is {job.status}; only a gate_failed, failed or cancelled job can be retried")
        await self._jobs.execute(
            transitions.follow(run.id, "queued", verdict=None, error=None),
            self._event(job, "queued again"),
            outbox.execute_run(run.id),
        )
        self._jobs.record("job.retried", job.id, run=run.id)
        self._jobs.record("job.status", job.id, status="queued", run=run.id)

    def _check_tokens(self, statistics: JobStatistics) -> None:
        tokens, most = statistics.forget.tokens, self._settings.max_forget_tokens
        if tokens is not None and tokens.total > most:
            about = "about " if tokens.sampled else ""
            raise invalid_field("/forget_set", f"has {about}{tokens.total} tokens, more than {most}; split it")

    async def _replay(self, key: str | None, digest: bytes) -> None:
        before = await self._jobs.by_idempotency_key(key) if key else None
        if before is None:
            return
        if before.request_digest != digest:
            raise invalid_field("/header/Idempotency-Key", "was used for another request; take a new key")
        raise AlreadyAccepted(before.id)

    async def _store(self, run: Run, job: UnlearnJob) -> None:
        try:
            await self._jobs.add(run, job)
        except IntegrityError:
            if job.idempotency_key is None:
                raise
            # Two equal requests at once: the other one has committed by now.
            raise Conflict(
                "a request with this Idempotency-Key is being accepted; repeat this one",
                headers={"Retry-After": "1"},
            ) from None
        await self._jobs.execute(self._event(job, "accepted"), outbox.execute_run(run.id))
        self._jobs.record(
            "job.accepted",
            job.id,
            run=run.id,
            adapter=job.adapter_id,
            forget_set=job.forget_set_id,
            retain_set=job.retain_set_id,
            holdout_set=job.holdout_set_id,
            control=job.control_version_id,
            method=job.method["type"],
            policy={"name": job.policy["name"], "version": job.policy["version"]},
            seed=job.seed,
        )

    async def _control(self, wanted: str | None, adapter: Adapter) -> AdapterVersion | None:
        """The version that a job names as its control."""
        if wanted is None:
            return None
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
        return version

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
