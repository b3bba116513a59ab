"""Erasure requests of a privacy platform: resolved by the identity indexes, carried out as unlearn jobs."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from app.datasets.repository import DatasetRepository
from app.datasets.service import DatasetService
from app.identities.service import Found, IdentityIndexService
from app.jobs.schemas import JobCreate
from app.jobs.service import JobService
from app.kit.calendar import months_after
from app.kit.ids import new_id
from app.kit.problems import Conflict, NotFound, invalid_field
from app.opendsr.repository import JobRow, OpenDsrRepository
from app.opendsr.schemas import RequestStatus, SubjectRequest
from app.opendsr.status import overall
from app.opendsr.tables import OpenDsrRequest
from app.settings import Settings
from app.webhooks.service import check_callback


@dataclass(frozen=True)
class View:
    """A request with its jobs."""

    request: OpenDsrRequest
    jobs: Sequence[JobRow]

    @property
    def status(self) -> RequestStatus:
        """In the specification's words."""
        return overall([job.status for job, _ in self.jobs])

    @property
    def due_at(self) -> datetime:
        """When the last of its jobs is due."""
        return max((job.due_at for job, _ in self.jobs), default=self.request.due_at)


class OpenDsrService:
    """Requests of one tenant."""

    def __init__(
        self,
        requests: OpenDsrRepository,
        indexes: IdentityIndexService,
        datasets: DatasetRepository,
        uploads: DatasetService,
        jobs: JobService,
        settings: Settings,
    ) -> None:
        self._requests = requests
        self._indexes = indexes
        self._datasets = datasets
        self._uploads = uploads
        self._jobs = jobs
        self._settings = settings

    async def accept(self, request: SubjectRequest) -> View:
        """Take a request once: one job for each adapter whose index knows the person, none where nobody does.

        Raises:
            Invalid: it cannot be carried out.
            Conflict: its id was used for another request.
        """
        if request.subject_request_type != "erasure":
            raise invalid_field("/subject_request_type", "is not supported; this processor carries out erasure")
        for number, url in enumerate(request.status_callback_urls):
            check_callback(url, f"/status_callback_urls/{number}", self._settings)
        request_id, digest = new_id("dsr"), request_digest(request, self._settings.pepper)
        fresh = await self._requests.reserve(
            id=request_id,
            subject_request_id=request.subject_request_id,
            digest=digest,
            regulation=request.regulation,
            api_version=request.api_version,
            submitted_at=request.submitted_time,
            due_at=months_after(request.submitted_time, 1),
        )
        stored = await self._stored(request.subject_request_id)
        if not fresh:
            if not hmac.compare_digest(stored.digest, digest):
                raise Conflict("this subject_request_id was used for another request; take a new one")
            return await self._view(stored)
        await self._requests.add_callbacks(stored.id, dict.fromkeys(request.status_callback_urls))
        await self._carry_out(stored, request)
        return await self._view(stored)

    async def view(self, subject_request_id: str) -> View:
        """A request as it stands. Raises NotFound."""
        return await self._view(await self._stored(subject_request_id))

    async def cancel(self, subject_request_id: str) -> View:
        """Cancel a request that nobody works on yet.

        Raises:
            NotFound: no such request.
            Conflict: it is not pending.
        """
        view = await self.view(subject_request_id)
        if view.status != "pending":
            raise Conflict(f"the request is {view.status}; only a pending one can be cancelled")
        for job, _ in view.jobs:
            await self._jobs.cancel(job.id)
        self._requests.record("opendsr_request.cancelled", view.request.id)
        return view

    async def _stored(self, subject_request_id: str) -> OpenDsrRequest:
        stored = await self._requests.by_subject_request_id(subject_request_id)
        if stored is None:
            raise NotFound("there is no request with this subject_request_id")
        return stored

    async def _view(self, stored: OpenDsrRequest) -> View:
        return View(stored, await self._requests.jobs(stored.id))

    async def _carry_out(self, stored: OpenDsrRequest, request: SubjectRequest) -> None:
        # In one order, so that two requests about one person do not wait for each other.
        found = sorted(await self._indexes.find(request.subject_identities), key=lambda one: one.adapter)
        job_ids = [await self._start(stored.id, one, request) for one in found]
        stored.results_count = sum(len(one.records) for one in found)
        self._requests.record(
            "opendsr_request.accepted",
            stored.id,
            regulation=stored.regulation,
            jobs=job_ids,
            records=stored.results_count,
        )

    async def _start(self, request_id: str, found: Found, request: SubjectRequest) -> str:
        forget = await self._uploads.store_records("forget", list(found.records.values()))
        retain = await self._datasets.by_id(found.retain_set, lock=True) if found.retain_set else None
        if retain is None or retain.purged_at is not None:
            raise Conflict(f"the retain set of adapter {found.adapter!r} was purged; upload its identity index anew")
        job = JobCreate.model_validate(
            {
                "adapter": found.adapter,
                "forget_set": forget.id,
                "retain_set": (await self._uploads.store_without(retain, forget)).id,
                "subject_request_id": request.subject_request_id,
                "requested_at": request.submitted_time.isoformat(),
            }
        )
        job_id = (await self._jobs.create(job, await self._jobs.look_up(job))).job.id
        await self._requests.link(request_id, job_id)
        await self._indexes.claim(job_id, found.entries)
        return str(job_id)


def request_digest(request: SubjectRequest, pepper: bytes) -> bytes:
    """Tells whether two requests are the same, without keeping either."""
    sent = request.model_dump(mode="json", exclude_unset=True)
    canonical = json.dumps(sent, sort_keys=True, separators=(",", ":")).encode()
    return hashlib.blake2b(canonical, key=pepper[:64], digest_size=32, person=b"opendsr").digest()
