"""Accepting jobs and steering them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime

from anyio import to_thread
from sqlalchemy import Insert
from sqlalchemy.exc import IntegrityError

from app import outbox
from app.adapters.references import HEAD
from app.adapters.repository import AdapterRepository
from app.adapters.tables import Adapter, AdapterVersion
from app.datasets.fingerprints import overlap
from app.datasets.records import Record, RecordError, validate_record
from app.datasets.repository import DatasetRepository
from app.datasets.schemas import Purpose
from app.datasets.service import DatasetService
from app.datasets.tables import Dataset
from app.jobs import resolve, transitions
from app.jobs.repository import JobRepository, JobRow
from app.jobs.schemas import InlineRecords, JobCreate, RecordSet
from app.jobs.tables import Run, UnlearnJob
from app.kit.calendar import months_after
from app.kit.ids import new_id
from app.kit.problems import Conflict, FieldError, NotFound, invalid_field, invalid_fields
from app.methods import LEAST_FOR_MEMBERSHIP
from app.settings import Settings
from app.webhooks.service import WebhookService


class AlreadyAccepted(Exception):
    """This idempotency key has made a job before."""

    def __init__(self, job_id: str) -> None:
        super().__init__(job_id)
        self.job_id = job_id


@dataclass(frozen=True)
class _Sets:
    forget: Dataset
    retain: Dataset
    holdout: Dataset | None


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
        adapter = await self._adapters.by_name(request.adapter)
        if adapter is None:
            raise invalid_field("/adapter", "no adapter of this name is registered; GET /adapters lists them")
        if request.callback_url is not None:
            await self._callbacks.accept(request.callback_url, "/callback_url")
        policy = resolve.policy(request.policy)
        control = await self._control(request.control, adapter)
        sets = await self._sets(request, adapter)
        _require_holdout(request, sets.holdout)
        requested_at = request.requested_at or datetime.now(UTC)
        run = Run(id=new_id("run"), tenant_id=self._tenant_id, adapter_id=adapter.id)
        job = UnlearnJob(
            id=new_id("job"),
            tenant_id=self._tenant_id,
            adapter_id=adapter.id,
            run_id=run.id,
            forget_set_id=sets.forget.id,
            retain_set_id=sets.retain.id,
            holdout_set_id=sets.holdout.id if sets.holdout else None,
            control_version_id=control.id if control else None,
            method=request.method.resolve(sets.forget.records).model_dump(),
            policy=policy.model_dump(),
            seed=request.seed if request.seed is not None else secrets.randbelow(2**31),
            subject_request_id=request.subject_request_id,
            requested_at=requested_at,
            due_at=months_after(requested_at, 1),
            callback_url=request.callback_url,
            labels=dict(request.metadata),
            idempotency_key=idempotency_key,
            request_digest=digest if idempotency_key else None,
        )
        await self._store(run, job)
        return job.id

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

    async def _sets(self, request: JobCreate, adapter: Adapter) -> _Sets:
        retain_set = request.retain_set or adapter.default_retain_set_id
        if retain_set is None:
            raise invalid_field("/retain_set", "is needed, since the adapter has no default retain set")
        forget = await self._set("forget", request.forget_set)
        retain = await self._set("retain", retain_set)
        holdout = await self._set("holdout", request.holdout_set) if request.holdout_set else None
        await self._check_overlap("retain_set", forget, retain)
        if holdout:
            await self._check_overlap("holdout_set", forget, holdout)
        return _Sets(forget, retain, holdout)

    async def _set(self, purpose: Purpose, given: RecordSet) -> Dataset:
        pointer = f"/{purpose}_set"
        if isinstance(given, InlineRecords):
            records = _records(pointer, given)
            return await self._uploads.store_records(purpose, records)
        # Locked until the job is stored, so that nobody purges the dataset in between.
        dataset = await self._datasets.by_id(given, lock=True)
        if dataset is None:
            raise invalid_field(pointer, f"no dataset with this id; POST /datasets?purpose={purpose} first")
        if dataset.purpose != purpose:
            raise invalid_field(pointer, f"is a {dataset.purpose} set; upload it with purpose={purpose}")
        if dataset.purged_at is not None:
            raise invalid_field(pointer, "was purged; upload the records again")
        return dataset

    async def _check_overlap(self, field: str, forget: Dataset, other: Dataset) -> None:
        vault = self._uploads.vault
        shared = await to_thread.run_sync(lambda: overlap(vault.index(forget), vault.index(other)))
        if shared.records:
            raise invalid_field(
                f"/{field}",
                f"shares {shared.records} record(s) with the forget set, at its {shared.places()}; "
                "take them out of one of the two",
            )

    def _event(self, job: UnlearnJob, message: str) -> Insert:
        return transitions.event(job.id, job.tenant_id, message, kind="status")


def _require_holdout(request: JobCreate, holdout: Dataset | None) -> None:
    if not resolve.wants_holdout(request.policy):
        return
    if holdout is None:
        raise invalid_field(
            "/holdout_set", "is needed by the limit on membership: look-alike records that were never trained on"
        )
    if holdout.records < LEAST_FOR_MEMBERSHIP:
        raise invalid_field("/holdout_set", f"needs at least {LEAST_FOR_MEMBERSHIP} records to judge membership by")


def _records(pointer: str, inline: InlineRecords) -> list[Record]:
    records: list[Record] = []
    errors: list[FieldError] = []
    for index, value in enumerate(inline.records):
        try:
            records.append(validate_record(value))
        except RecordError as error:
            errors.append(FieldError(f"{pointer}/records/{index}", str(error)))
    if errors:
        raise invalid_fields(errors)
    return records
