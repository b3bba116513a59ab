"""``/unlearn-jobs``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from app.adapters.endpoints import ARCHIVE, archive_response
from app.adapters.repository import AdapterRepository
from app.adapters.schemas import AdapterName
from app.auth.guard import GuardedRoute
from app.datasets.endpoints import dataset_service
from app.datasets.repository import DatasetRepository
from app.datasets.service import DatasetService
from app.dependencies import SessionDep, SettingsDep, StorageDep, TenantDep, requires
from app.evaluations.report import HEADERS, HTML, prefers_html, report
from app.evaluations.schemas import EvaluationRead
from app.jobs.plan import JobPlan, JobPlanner
from app.jobs.present import present, present_event
from app.jobs.quota import within_quota
from app.jobs.repository import JobRepository
from app.jobs.schemas import EventRead, JobCreate, JobRead, Status
from app.jobs.service import AlreadyAccepted, JobService
from app.jobs.sets import SetReader
from app.kit.pagination import Cursor, Limit, Page, encode_cursor
from app.kit.problems import Conflict, Gone, NotFound, invalid_field, responses
from app.kit.text import Text
from app.webhooks.endpoints import webhook_service
from app.webhooks.service import WebhookService

router = APIRouter(prefix="/unlearn-jobs", tags=["unlearn jobs"], route_class=GuardedRoute)
_READ = responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND)
_CHANGE = responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
RETRY_AFTER = "2"


async def job_service(
    session: SessionDep,
    tenant: TenantDep,
    settings: SettingsDep,
    uploads: Annotated[DatasetService, Depends(dataset_service)],
    callbacks: Annotated[WebhookService, Depends(webhook_service)],
) -> JobService:
    """The service for the caller's tenant."""
    adapters, datasets = AdapterRepository(session, tenant), DatasetRepository(session, tenant)
    return JobService(JobRepository(session, tenant), adapters, datasets, uploads, callbacks, settings, tenant)


ServiceDep = Annotated[JobService, Depends(job_service)]


async def job_planner(
    session: SessionDep,
    tenant: TenantDep,
    settings: SettingsDep,
    service: ServiceDep,
    uploads: Annotated[DatasetService, Depends(dataset_service)],
) -> JobPlanner:
    """The planner of the caller's tenant."""
    reader = SetReader(DatasetRepository(session, tenant), uploads, keep=False)
    return JobPlanner(service, JobRepository(session, tenant), reader, settings)


PlannerDep = Annotated[JobPlanner, Depends(job_planner)]
DryRun = Annotated[bool, Query(description="Check and resolve the request, and create nothing.")]


async def room_for_a_job(request: Request, session: SessionDep, tenant: TenantDep, dry_run: DryRun = False) -> None:
    """A dry run brings nothing into the queue, so that no quota is in its way. Raises QuotaExceeded."""
    if not dry_run:
        await within_quota(request, session, tenant)


@router.post(
    "",
    dependencies=[requires("jobs:write"), Depends(room_for_a_job)],
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
    response: Response,
    service: ServiceDep,
    planner: PlannerDep,
    dry_run: DryRun = False,
    idempotency_key: Annotated[
        Text | None,
        Header(
            min_length=1,
            max_length=256,
            description="The same key and body make one job, however often sent.",
        ),
    ] = None,
) -> JobRead | Response:
    """Ask for records to be unlearned from an adapter."""
    if dry_run:
        return JSONResponse((await planner.plan(body)).model_dump(mode="json"))
    try:
        job_id = await service.create(body, idempotency_key)
    except AlreadyAccepted as before:
        job_id = before.job_id
    response.headers["Location"] = f"/unlearn-jobs/{job_id}"
    response.headers["Retry-After"] = RETRY_AFTER
    return present(await service.get(job_id))


@router.get(
    "",
    dependencies=[requires("jobs:read")],
    operation_id="list_unlearn_jobs",
    responses=responses(HTTPStatus.UNAUTHORIZED),
)
async def list_all(
    session: SessionDep,
    tenant: TenantDep,
    status: Annotated[Status | None, Query()] = None,
    adapter: Annotated[AdapterName | None, Query()] = None,
    subject_request_id: Annotated[Text | None, Query(min_length=1, max_length=256)] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Page[JobRead]:
    """Jobs, newest first."""
    given = {"status": status, "adapter": adapter, "subject_request_id": subject_request_id}
    filters = {name: value for name, value in given.items() if value is not None}
    rows, more = await JobRepository(session, tenant).page(limit, cursor, filters)
    following = encode_cursor(rows[-1][0].created_at, rows[-1][0].id) if more else None
    return Page(data=[present(row) for row in rows], has_more=more, next_cursor=following)


@router.get("/{job_id}", dependencies=[requires("jobs:read")], operation_id="get_unlearn_job", responses=_READ)
async def get(job_id: str, response: Response, service: ServiceDep) -> JobRead:
    """One job."""
    job = present(await service.get(job_id))
    if job.finished_at is None:
        response.headers["Retry-After"] = RETRY_AFTER
    return job


@router.post(
    "/{job_id}/cancel",
    dependencies=[requires("jobs:write")],
    status_code=HTTPStatus.ACCEPTED,
    operation_id="cancel_unlearn_job",
    responses=_CHANGE,
)
async def cancel(job_id: str, service: ServiceDep) -> JobRead:
    """Cancel a job that has not ended. A running one stops at its next step."""
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


@router.get(
    "/{job_id}/events", dependencies=[requires("jobs:read")], operation_id="list_unlearn_job_events", responses=_READ
)
async def events(
    job_id: str,
    service: ServiceDep,
    session: SessionDep,
    tenant: TenantDep,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Page[EventRead]:
    """What happened to a job, newest first."""
    await service.get(job_id)
    rows, more = await JobRepository(session, tenant).events(job_id, limit, _before(cursor))
    following = str(rows[-1].id) if more else None
    return Page(data=[present_event(row) for row in rows], has_more=more, next_cursor=following)


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
    if row is None or row.attempt != run.attempt or job.status == "queued":
        raise Conflict(f"the job is {job.status} and has not been evaluated")
    about = {"job": job_id, "run_id": run.id, "attempt": row.attempt, "created_at": row.created_at}
    measured = EvaluationRead.model_validate(row.document | about)
    if prefers_html(",".join(request.headers.getlist("accept"))):
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


def _before(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise invalid_field("/query/cursor", "not a cursor of this list; leave it out to start over")
    return int(cursor)
