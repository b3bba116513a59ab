"""``/identity-indexes``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request

from app.adapters.repository import AdapterRepository
from app.adapters.schemas import AdapterName
from app.auth.guard import GuardedRoute
from app.datasets.body import reader_of
from app.datasets.endpoints import UPLOAD_BODY
from app.datasets.repository import DatasetRepository
from app.dependencies import SessionDep, SettingsDep, StorageDep, TenantDep, requires
from app.identities.repository import IdentityIndexRepository
from app.identities.schemas import IdentityIndexRead
from app.identities.service import IdentityIndexService, present
from app.kit.encodings import Bounds
from app.kit.pagination import Cursor, Limit, Page, encode_cursor
from app.kit.problems import responses
from app.kit.text import Text

router = APIRouter(prefix="/identity-indexes", tags=["identity indexes"], route_class=GuardedRoute)


async def identity_index_service(
    session: SessionDep, tenant: TenantDep, storage: StorageDep, settings: SettingsDep
) -> IdentityIndexService:
    """The service for the caller's tenant."""
    adapters, datasets = AdapterRepository(session, tenant), DatasetRepository(session, tenant)
    indexes = IdentityIndexRepository(session, tenant)
    return IdentityIndexService(indexes, adapters, datasets, storage, settings, tenant)


ServiceDep = Annotated[IdentityIndexService, Depends(identity_index_service)]


@router.post(
    "",
    dependencies=[requires("datasets:write")],
    status_code=HTTPStatus.CREATED,
    operation_id="upload_identity_index",
    openapi_extra=UPLOAD_BODY,
    responses=responses(
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    ),
)
async def upload(
    request: Request,
    service: ServiceDep,
    settings: SettingsDep,
    adapter: Annotated[AdapterName, Query(description="The adapter that was trained on the records.")],
    retain_set: Annotated[
        Text | None,
        Query(max_length=64, description="What its jobs keep; the adapter's default retain set when left out."),
    ] = None,
) -> IdentityIndexRead:
    """Upload which records are about whom, as JSON Lines, sealed as they arrive; gzip and zstd as for datasets."""
    reader = reader_of(request.headers, Bounds(settings.max_upload_bytes, settings.max_decompression_ratio))
    return present(await service.get(await service.upload(adapter, retain_set, request.stream(), reader)))


@router.get(
    "",
    dependencies=[requires("datasets:write", "jobs:read")],
    operation_id="list_identity_indexes",
    responses=responses(HTTPStatus.UNAUTHORIZED),
)
async def list_all(
    session: SessionDep, tenant: TenantDep, limit: Limit = 20, cursor: Cursor = None
) -> Page[IdentityIndexRead]:
    """Identity indexes, newest first."""
    rows, more = await IdentityIndexRepository(session, tenant).page(limit, cursor)
    following = encode_cursor(rows[-1][0].created_at, rows[-1][0].id) if more else None
    return Page(data=[present(row) for row in rows], has_more=more, next_cursor=following)


@router.get(
    "/{index_id}",
    dependencies=[requires("datasets:write", "jobs:read")],
    operation_id="get_identity_index",
    responses=responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND),
)
async def get(index_id: str, service: ServiceDep) -> IdentityIndexRead:
    """What is known of an identity index."""
    return present(await service.get(index_id))


@router.delete(
    "/{index_id}",
    dependencies=[requires("datasets:write")],
    status_code=HTTPStatus.NO_CONTENT,
    operation_id="purge_identity_index",
    responses=responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND),
)
async def purge(index_id: str, service: ServiceDep) -> None:
    """Purge an identity index now: its keys are destroyed, then its bytes."""
    await service.purge(index_id)
