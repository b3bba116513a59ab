"""``/keys`` and ``/unlearn-jobs/{job_id}/attestation``."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from app.attestations.keys import EVERY_KEY, present_key
from app.attestations.repository import AttestationRepository
from app.attestations.schemas import KeyList
from app.auth.guard import GuardedRoute
from app.dependencies import SessionDep, TenantDep, requires
from app.jobs.endpoints import ServiceDep
from app.kit.problems import Conflict, NotFound, responses

router = APIRouter(tags=["attestations"], route_class=GuardedRoute)


# Without an API key: an auditor has none, and public keys are no secret. They tell nothing of any tenant.
@router.get("/keys", operation_id="list_signing_keys")
async def keys(request: Request) -> KeyList:
    """The public half of every key that ever signed an attestation, newest first."""
    async with request.app.state.sessions() as session:
        return KeyList(data=[present_key(row) for row in await session.scalars(EVERY_KEY)])


@router.get(
    "/unlearn-jobs/{job_id}/attestation",
    dependencies=[requires("jobs:read", "audit:read")],
    operation_id="get_unlearn_job_attestation",
    response_class=Response,
    responses={
        200: {"description": "DSSE envelope over an in-toto Statement", "content": {"application/json": {}}},
        **responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
    },
)
async def attestation(job_id: str, service: ServiceDep, session: SessionDep, tenant: TenantDep) -> Response:
    """The signed statement of a release, the same bytes as in the archive. 409 with the current state before it."""
    job, *_ = await service.get(job_id)
    if job.result_version is None:
        raise Conflict(f"the job is {job.status}; its attestation is signed when it has succeeded")
    found = await AttestationRepository(session, tenant).by_job(job_id)
    if found is None:
        raise NotFound("this result was released before results were attested")
    return Response(found.envelope, media_type="application/json")
