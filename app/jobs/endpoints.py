"""``/unlearn-jobs``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters.endpoints import ARCHIVE, archive_response
from app.adapters.repository import AdapterRepository
from app.auth.guard import GuardedRoute
from app.datasets.endpoints import dataset_service
from app.datasets.repository import DatasetRepository
from app.dependencies import (
    SessionDep,
    StorageDep,
    TenantDep,
    reads_of,
    requires,
    settings_of,
    storage_of,
    tenant_of,
)
from app.evaluations.report import HEADERS, report
from app.evaluations.schemas import EvaluationRead
from app.idempotency.repository import AcceptedRequestRepository, Answer
from app.idempotency.service import Once
from app.jobs import lookup
from app.jobs.deciding import Decisions
from app.jobs.filters import METADATA_PARAMETER, JobFilters, job_filters
from app.jobs.listing import cursor_after
from app.jobs.plan import JobPlan, JobPlanner
from app.jobs.present import present, retry_after
from app.jobs.quota import tenant_quota, within_quota
from app.jobs.repository import JobRepository
from app.jobs.resolve import canonical
from app.jobs.schemas import Decision, Extension, JobCreate, JobRead
from app.jobs.service import Caller, JobService, no_such_job
from app.jobs.sets import SetReader
from app.kit.driver import together
from app.kit.negotiation import HTML, wants
from app.kit.pagination import Cursor, Limit, Page
from app.kit.problems import Conflict, Gone, NotFound, responses
from app.kit.text import Text
from app.webhooks.endpoints import webhook_service

router = APIRouter(prefix="/unlearn-jobs", tags=["unlearn jobs"], route_class=GuardedRoute)
_READ = responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND)
_CHANGE = responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)


# What follows asks the framework for nothing that it can make by itself: the framework would go through the
# dependencies of each dependency anew, which takes longer than making all of this.
async def caller_of(request: Request) -> Caller:
    """Who calls."""
    return Caller(await tenant_of(request), request.state.api_key)


CallerDep = Annotated[Caller, Depends(caller_of)]


async def job_service(request: Request, session: SessionDep) -> JobService:
    """The service for the caller's tenant."""
    caller, settings = await caller_of(request), await settings_of(request)
    tenant = caller.tenant_id
    jobs, adapters = JobRepository(session, tenant), AdapterRepository(session, tenant)
    datasets = DatasetRepository(session, tenant)
    uploads = await dataset_service(session, tenant, await storage_of(request), settings)
    callbacks = await webhook_service(session, tenant, settings)
    return JobService(session, jobs, adapters, datasets, uploads, callbacks, settings, caller)


ServiceDep = Annotated[JobService, Depends(job_service)]
DryRun = Annotated[bool, Query(description="Check and resolve the request, and create nothing.")]


async def job_planner(request: Request, session: AsyncSession, service: JobService) -> JobPlanner:
    """The planner of the caller's tenant."""
    tenant, settings = await tenant_of(request), await settings_of(request)
    jobs, adapters = JobRepository(session, tenant), AdapterRepository(session, tenant)
    uploads = await dataset_service(session, tenant, await storage_of(request), settings)
    return JobPlanner(service, jobs, adapters, SetReader(uploads, keep=False), settings)


async def once_under(key: str | None, request: Request, session: AsyncSession) -> Once:
    """The request under its idempotency key, if it has one."""
    accepted = AcceptedRequestRepository(session, await tenant_of(request))
    return Once(accepted, await settings_of(request), key)


IdempotencyKey = Annotated[
    Text | None,
    Header(description="The same key and body make one job, however often sent, and get the first answer again."),
]


@router.post(
    "",
    dependencies=[requires("jobs:write")],
    status_code=HTTPStatus.ACCEPTED,
    operation_id="create_unlearn_job",
    response_model=JobRead,
    responses={
        200: {"model": JobPlan, "description": "With `dry_run=true`: what the request would come to."},
        **responses(
            HTTPStatus.UNAUTHORIZED,
            HTTPStatus.CONFLICT,
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            HTTPStatus.UNPROCESSABLE_ENTITY,
        ),
    },
)
async def create(
    body: JobCreate,
    request: Request,
    session: SessionDep,
    idempotency_key: IdempotencyKey = None,
    dry_run: DryRun = False,
) -> Response:
    """Ask for records to be unlearned from an adapter."""
    service, once = await job_service(request, session), await once_under(idempotency_key, request, session)
    if dry_run:
        planner = await job_planner(request, session, service)
        return JSONResponse((await planner.plan(body)).model_dump(mode="json"))
    sent = canonical(body)
    async with together(session):
        await once.claim(sent)
        asked = await service.ask(body)
    before = await once.first_answer()
    if before is not None:
        return before
    grounds = await service.look_up(body, asked)
    # Asked behind all that was answered before: a full queue is no news to who repeats a request.
    await (await tenant_quota(request, session)).take()
    found = await service.accept(body, grounds)
    async with together(session):
        storing = await service.store(body, found)
        answer = accepted(present(storing.view))
        await once.keep(answer)
    await service.confirm(storing)
    return await once.give(answer)


def accepted(job: JobRead) -> Answer:
    """The answer to who has asked for a job."""
    return Answer(HTTPStatus.ACCEPTED, f"/unlearn-jobs/{job.id}", job.model_dump_json(), retry_after(job))


@router.get(
    "",
    dependencies=[requires("jobs:read")],
    operation_id="list_unlearn_jobs",
    responses=responses(HTTPStatus.UNAUTHORIZED),
    openapi_extra={"parameters": [METADATA_PARAMETER]},
)
async def list_all(
    session: SessionDep,
    tenant: TenantDep,
    filters: Annotated[JobFilters, Depends(job_filters)],
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Page[JobRead]:
    """Jobs, newest first; those of `due_before` and `overdue` by due date, latest first."""
    rows, more = await JobRepository(session, tenant).page(limit, cursor, filters)
    following = cursor_after(rows[-1][0], filters) if more else None
    return Page(data=[present(row) for row in rows], has_more=more, next_cursor=following)


@router.get(
    "/{job_id}",
    dependencies=[requires("jobs:read")],
    operation_id="get_unlearn_job",
    response_model=JobRead,
    responses=_READ,
)
async def get(job_id: str, request: Request) -> Response:
    """One job."""
    found = await lookup.find(await reads_of(request), await tenant_of(request), job_id)
    if found is None:
        raise no_such_job()
    job = present(found)
    # As it is: the framework would check it once more.
    return Response(job.model_dump_json(), headers=retry_after(job), media_type="application/json")


@router.post(
    "/{job_id}/cancel",
    dependencies=[requires("jobs:write")],
    status_code=HTTPStatus.ACCEPTED,
    operation_id="cancel_unlearn_job",
    responses=_CHANGE,
)
async def cancel(job_id: str, service: ServiceDep) -> JobRead:
    """Cancel a job that has not ended. A waiting one ends at once, a running one stops at its next step."""
    await service.cancel(job_id)
    return present(await service.get(job_id))


@router.post(
    "/{job_id}/retry",
    dependencies=[requires("jobs:write"), Depends(within_quota)],
    status_code=HTTPStatus.ACCEPTED,
    operation_id="retry_unlearn_job",
    responses=_CHANGE,
)
async def retry(job_id: str, service: ServiceDep) -> JobRead:
    """Queue a job again that ended without success."""
    await service.retry(job_id)
    return present(await service.get(job_id))


async def decisions(session: SessionDep, service: ServiceDep, caller: CallerDep) -> Decisions:
    """What people decide, for the caller's tenant."""
    return Decisions(JobRepository(session, caller.tenant_id), service, caller)


DecisionsDep = Annotated[Decisions, Depends(decisions)]


@router.post(
    "/{job_id}/approve",
    dependencies=[requires("jobs:write")],
    status_code=HTTPStatus.ACCEPTED,
    operation_id="approve_unlearn_job",
    responses=_CHANGE,
)
async def approve(job_id: str, service: ServiceDep, decisions: DecisionsDep, body: Decision | None = None) -> JobRead:
    """Let a job start that waits for approval. Takes another key than the submitter's."""
    await decisions.approve(job_id, body.reason if body else None)
    return present(await service.get(job_id))


@router.post(
    "/{job_id}/deny",
    dependencies=[requires("jobs:write")],
    status_code=HTTPStatus.ACCEPTED,
    operation_id="deny_unlearn_job",
    responses=_CHANGE,
)
async def deny(job_id: str, service: ServiceDep, decisions: DecisionsDep, body: Decision | None = None) -> JobRead:
    """End a job that waits for approval. Takes another key than the submitter's."""
    await decisions.deny(job_id, body.reason if body else None)
    return present(await service.get(job_id))


@router.post(
    "/{job_id}/extend",
    dependencies=[requires("jobs:write")],
    operation_id="extend_unlearn_job",
    responses=_CHANGE,
)
async def extend(job_id: str, body: Extension, service: ServiceDep, decisions: DecisionsDep) -> JobRead:
    """Move a job's deadline by two calendar months, once, before it has passed (GDPR Art. 12(3))."""
    await decisions.extend(job_id, body.reason)
    return present(await service.get(job_id))


@router.get(
    "/{job_id}/evaluation",
    dependencies=[requires("jobs:read", "audit:read")],
    operation_id="get_unlearn_job_evaluation",
    response_model=EvaluationRead,
    responses={200: {"content": {HTML: {"schema": {"type": "string"}}}}, **_CHANGE},
)
async def evaluation(
    job_id: str, request: Request, response: Response, service: ServiceDep, session: SessionDep, tenant: TenantDep
) -> EvaluationRead | Response:
    """What was measured before and after, and the gate's verdict. 409 until there is one.

    `Accept: text/html` asks for the report with plots.
    """
    found = await service.get(job_id)
    job, run, *_ = found
    row = await JobRepository(session, tenant).evaluation(run.id)
    if row is None or row.attempt != run.attempt or job.status in ("awaiting_approval", "queued"):
        raise Conflict(f"the job is {job.status} and has not been evaluated")
    about = {"job": job_id, "run_id": run.id, "attempt": row.attempt, "created_at": row.created_at}
    measured = EvaluationRead.model_validate(row.document | about)
    if wants(request, HTML):
        page = await to_thread.run_sync(report, measured, present(found))
        return HTMLResponse(page, headers=HEADERS)
    response.headers["Vary"] = HEADERS["Vary"]
    return measured


@router.get(
    "/{job_id}/adapter",
    dependencies=[requires("adapters:read")],
    operation_id="download_unlearned_adapter",
    response_class=Response,
    responses={**ARCHIVE, **_CHANGE},
)
@router.head("/{job_id}/adapter", dependencies=[requires("adapters:read")], include_in_schema=False)
async def adapter(
    job_id: str,
    request: Request,
    service: ServiceDep,
    session: SessionDep,
    tenant: TenantDep,
    storage: StorageDep,
) -> Response:
    """The unlearned adapter. 409 with the current state until it is released."""
    job, _, name, *_ = await service.get(job_id)
    if job.result_version is None:
        raise Conflict(f"the job is {job.status}; its adapter is released when it has succeeded")
    version = await AdapterRepository(session, tenant).version(job.adapter_id, job.result_version)
    if version is None:
        raise NotFound("there is no such version")
    if version.status != "ready":
        raise Gone(f"version {version.number} is {version.status}; download the adapter's head instead")
    return await archive_response(request, storage, name, version)
