"""``/api-keys``."""

from __future__ import annotations

from datetime import timedelta
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from app.auth.guard import GuardedRoute
from app.auth.repository import ApiKeyRepository
from app.auth.schemas import ApiKeyCreate, ApiKeyRead, ApiKeyRotate, ApiKeyWithSecret
from app.auth.service import ApiKeyService, present
from app.dependencies import SessionDep, SettingsDep, TenantDep, requires
from app.kit.pagination import Cursor, Limit, Page, encode_cursor
from app.kit.problems import responses

router = APIRouter(prefix="/api-keys", tags=["API keys"], route_class=GuardedRoute)
_READ = responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND)
_CHANGE = responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)
# A secret is shown once: no cache may keep it.
_UNKEPT = {"Cache-Control": "no-store"}


async def api_key_service(
    request: Request, session: SessionDep, tenant: TenantDep, settings: SettingsDep
) -> ApiKeyService:
    """The service for the caller's tenant."""
    repository = ApiKeyRepository(session, tenant)
    return ApiKeyService(repository, tenant, request.state.scopes, settings.pepper)


ServiceDep = Annotated[ApiKeyService, Depends(api_key_service)]


@router.post(
    "",
    dependencies=[requires("admin")],
    status_code=HTTPStatus.CREATED,
    operation_id="create_api_key",
    responses=responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.UNPROCESSABLE_ENTITY),
)
async def create(body: ApiKeyCreate, response: Response, service: ServiceDep) -> ApiKeyWithSecret:
    """Make a key. Its secret is in this answer and nowhere else."""
    response.headers.update(_UNKEPT)
    return await service.create(body)


@router.get(
    "",
    dependencies=[requires("admin")],
    operation_id="list_api_keys",
    responses=responses(HTTPStatus.UNAUTHORIZED),
)
async def list_all(
    session: SessionDep, tenant: TenantDep, limit: Limit = 20, cursor: Cursor = None
) -> Page[ApiKeyRead]:
    """API keys, newest first, the revoked ones too."""
    rows, more = await ApiKeyRepository(session, tenant).page(limit, cursor)
    following = encode_cursor(rows[-1].created_at, rows[-1].id) if more else None
    return Page(data=[present(row) for row in rows], has_more=more, next_cursor=following)


@router.get("/{key_id}", dependencies=[requires("admin")], operation_id="get_api_key", responses=_READ)
async def get(key_id: str, service: ServiceDep) -> ApiKeyRead:
    """One API key."""
    return present(await service.get(key_id))


@router.post("/{key_id}/revoke", dependencies=[requires("admin")], operation_id="revoke_api_key", responses=_CHANGE)
async def revoke(key_id: str, service: ServiceDep) -> ApiKeyRead:
    """End a key at once. 409 for the last live key with the scope admin."""
    return present(await service.revoke(key_id))


@router.post("/{key_id}/rotate", dependencies=[requires("admin")], operation_id="rotate_api_key", responses=_CHANGE)
async def rotate(
    key_id: str, response: Response, service: ServiceDep, body: ApiKeyRotate | None = None
) -> ApiKeyWithSecret:
    """Give a key a new secret, shown this once; the old one stays good for a while."""
    response.headers.update(_UNKEPT)
    return await service.rotate(key_id, timedelta(seconds=(body or ApiKeyRotate()).grace_seconds))
