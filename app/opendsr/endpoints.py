"""``/opendsr/v2``: the processor's side of OpenDSR 2.0, over the same jobs as everything else."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Depends, Header, Request, Response

from app.datasets.endpoints import dataset_service
from app.datasets.repository import DatasetRepository
from app.datasets.service import DatasetService
from app.dependencies import SessionDep, SettingsDep, TenantDep, requires
from app.identities.endpoints import identity_index_service
from app.identities.schemas import IdentityFormat, IdentityType
from app.identities.service import IdentityIndexService
from app.jobs.endpoints import job_service
from app.jobs.service import JobService
from app.kit.certificates import Credentials
from app.kit.problems import NotFound, responses
from app.opendsr.answers import OpenDsrRoute, read_request, signed
from app.opendsr.present import present_status
from app.opendsr.repository import OpenDsrRepository
from app.opendsr.schemas import (
    API_VERSION,
    Accepted,
    Cancelled,
    Discovery,
    StatusCallback,
    StatusRead,
    SubjectRequest,
    SupportedIdentity,
)
from app.opendsr.service import OpenDsrService

PREFIX = "/opendsr/v2"
CERTIFICATE = "/certificate.pem"
router = APIRouter(prefix=PREFIX, tags=["opendsr"], route_class=OpenDsrRoute)


def _body() -> dict[str, Any]:
    """The body of a request, which is read as bytes, for the OpenAPI document."""
    schema = SubjectRequest.model_json_schema()
    schema["properties"]["subject_identities"]["items"] = schema.pop("$defs")["SubjectIdentity"]
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


_READ = responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND)


async def credentials_of(settings: SettingsDep) -> Credentials:
    """What answers are signed with. Raises NotFound where nobody has set it: OpenDSR is off then."""
    if settings.opendsr is None:
        raise NotFound("OpenDSR is switched off here: the service has no LETHE_OPENDSR_CREDENTIALS")
    return settings.opendsr


async def opendsr_service(
    session: SessionDep,
    tenant: TenantDep,
    settings: SettingsDep,
    indexes: Annotated[IdentityIndexService, Depends(identity_index_service)],
    uploads: Annotated[DatasetService, Depends(dataset_service)],
    jobs: Annotated[JobService, Depends(job_service)],
) -> OpenDsrService:
    """The service for the caller's tenant."""
    datasets = DatasetRepository(session, tenant)
    return OpenDsrService(OpenDsrRepository(session, tenant), indexes, datasets, uploads, jobs, settings)


CredentialsDep = Annotated[Credentials, Depends(credentials_of)]
ServiceDep = Annotated[OpenDsrService, Depends(opendsr_service)]


@router.get(
    "/discovery",
    operation_id="opendsr_discovery",
    response_model=Discovery,
    responses=responses(HTTPStatus.NOT_FOUND),
)
async def discovery(credentials: CredentialsDep) -> Response:
    """What this processor can do, and where its certificate is. Needs no key."""
    supported = [
        SupportedIdentity(identity_type=kind, identity_format=how)
        for kind in get_args(IdentityType)
        for how in get_args(IdentityFormat)
    ]
    document = Discovery(
        api_version=API_VERSION,
        supported_identities=supported,
        supported_subject_request_types=["erasure"],
        # The specification wants the domain that the certificate was issued to, whatever name the caller used.
        processor_certificate=f"https://{credentials.domain}{PREFIX}{CERTIFICATE}",
    )
    return signed(document, credentials)


@router.get(
    CERTIFICATE,
    operation_id="opendsr_certificate",
    response_class=Response,
    responses={200: {"content": {"application/x-pem-file": {}}}, **responses(HTTPStatus.NOT_FOUND)},
)
async def certificate(credentials: CredentialsDep) -> Response:
    """The certificate that answers and callbacks are signed under, with its chain. Needs no key."""
    return Response(credentials.chain_pem, media_type="application/x-pem-file")


_callbacks = APIRouter(tags=["opendsr"])


@_callbacks.post("{$request.body#/status_callback_urls/0}", operation_id="on_opendsr_status", status_code=204)
async def _told(
    body: StatusCallback,
    x_opendsr_processor_domain: Annotated[str, Header(description="The domain of the certificate.")],
    x_opendsr_signature: Annotated[str, Header(description="Over the bytes of the body, in base64.")],
) -> None:
    """The status of a request has changed. Sent to each of its status_callback_urls; answer 2xx within 15 seconds."""


@router.post(
    "/requests",
    dependencies=[requires("jobs:write")],
    callbacks=_callbacks.routes,
    status_code=HTTPStatus.CREATED,
    operation_id="create_opendsr_request",
    response_model=Accepted,
    openapi_extra=_body(),
    responses=responses(
        HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    ),
)
async def create(request: Request, service: ServiceDep, credentials: CredentialsDep, tenant: TenantDep) -> Response:
    """Ask for a person's records to be erased. The same body may be sent again."""
    body = await request.body()
    view = await service.accept(read_request(body))
    document = Accepted(
        controller_id=tenant,
        expected_completion_time=view.due_at,
        received_time=view.request.received_at,
        encoded_request=base64.b64encode(body).decode(),
        subject_request_id=view.request.subject_request_id,
    )
    return signed(document, credentials, HTTPStatus.CREATED)


@router.get(
    "/requests/{subject_request_id}",
    dependencies=[requires("jobs:read")],
    operation_id="get_opendsr_request",
    response_model=StatusRead,
    responses=_READ,
)
async def get(subject_request_id: str, service: ServiceDep, credentials: CredentialsDep) -> Response:
    """Where a request stands."""
    return signed(present_status(await service.view(subject_request_id), credentials.domain), credentials)


@router.delete(
    "/requests/{subject_request_id}",
    dependencies=[requires("jobs:write")],
    status_code=HTTPStatus.ACCEPTED,
    operation_id="cancel_opendsr_request",
    response_model=Cancelled,
    responses=_READ | responses(HTTPStatus.BAD_REQUEST),
)
async def cancel(
    subject_request_id: str, service: ServiceDep, credentials: CredentialsDep, tenant: TenantDep
) -> Response:
    """Cancel a request that is still pending."""
    view = await service.cancel(subject_request_id)
    document = Cancelled(
        controller_id=tenant,
        subject_request_id=view.request.subject_request_id,
        received_time=datetime.now(UTC),
        api_version=view.request.api_version,
    )
    return signed(document, credentials, HTTPStatus.ACCEPTED)
