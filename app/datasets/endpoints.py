"""``/datasets``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import AwareDatetime

from app.auth.guard import GuardedRoute
from app.datasets.body import reader_of
from app.datasets.repository import DatasetRepository
from app.datasets.schemas import DatasetRead, Purpose
from app.datasets.service import DatasetService, present
from app.dependencies import SessionDep, SettingsDep, StorageDep, TenantDep, requires
from app.kit.encodings import Bounds
from app.kit.pagination import Cursor, Limit, Page, encode_cursor
from app.kit.problems import responses

router = APIRouter(prefix="/datasets", tags=["datasets"], route_class=GuardedRoute)

UPLOAD_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/jsonl": {"schema": {"type": "string"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}


async def dataset_service(
    session: SessionDep, tenant: TenantDep, storage: StorageDep, settings: SettingsDep
) -> DatasetService:
    """The service for the caller's tenant."""
    return DatasetService(DatasetRepository(session, tenant), storage, settings, tenant)


ServiceDep = Annotated[DatasetService, Depends(dataset_service)]


@router.post(
    "",
    dependencies=[requires("datasets:write")],
    status_code=HTTPStatus.CREATED,
    operation_id="upload_dataset",
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
    purpose: Annotated[Purpose, Query(description="What the records are for.")],
    purge_at: Annotated[
        AwareDatetime | None, Query(description="When to purge them; not later than the retention of their purpose.")
    ] = None,
) -> DatasetRead:
    """Upload records as JSON Lines, encrypted as they arrive. `Content-Encoding` may be gzip or zstd."""
    bounds = Bounds(settings.max_upload_bytes, settings.max_decompression_ratio)
    return present(await service.upload(purpose, request.stream(), reader_of(request.headers, bounds), purge_at))


@router.get(
    "",
    dependencies=[requires("datasets:write", "jobs:read")],
    operation_id="list_datasets",
    responses=responses(HTTPStatus.UNAUTHORIZED),
)
async def list_all(
    session: SessionDep, tenant: TenantDep, limit: Limit = 20, cursor: Cursor = None
) -> Page[DatasetRead]:
    """Datasets, newest first."""
    rows, more = await DatasetRepository(session, tenant).page(limit, cursor)
    following = encode_cursor(rows[-1].created_at, rows[-1].id) if more else None
    return Page(data=[present(row) for row in rows], has_more=more, next_cursor=following)


@router.get(
    "/{dataset_id}",
    dependencies=[requires("datasets:write", "jobs:read")],
    operation_id="get_dataset",
    responses=responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND),
)
async def get(dataset_id: str, service: ServiceDep) -> DatasetRead:
    """What is known of a dataset."""
    return present(await service.get(dataset_id))


@router.delete(
    "/{dataset_id}",
    dependencies=[requires("datasets:write")],
    status_code=HTTPStatus.NO_CONTENT,
    operation_id="purge_dataset",
    responses=responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
)
async def purge(dataset_id: str, service: ServiceDep) -> None:
    """Purge a dataset now: its key is destroyed, then its bytes."""
    await service.purge(dataset_id)
