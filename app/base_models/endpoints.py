"""``/base-models``."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter

from app.auth.guard import GuardedRoute
from app.base_models import service
from app.base_models.repository import BaseModelRepository
from app.base_models.schemas import BaseModelCreate, BaseModelRead
from app.dependencies import SessionDep, SettingsDep, TenantDep, requires
from app.kit.pagination import Cursor, Limit, Page, encode_cursor
from app.kit.problems import responses

router = APIRouter(prefix="/base-models", tags=["base models"], route_class=GuardedRoute)


@router.post(
    "",
    dependencies=[requires("adapters:write")],
    status_code=HTTPStatus.CREATED,
    operation_id="register_base_model",
    responses=responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY),
)
async def register(
    body: BaseModelCreate, session: SessionDep, tenant: TenantDep, settings: SettingsDep
) -> BaseModelRead:
    """Register a frozen base model from a directory that the service can read."""
    row = await service.register(BaseModelRepository(session, tenant), tenant, settings, body)
    return service.present(row)


@router.get(
    "",
    dependencies=[requires("adapters:read")],
    operation_id="list_base_models",
    responses=responses(HTTPStatus.UNAUTHORIZED),
)
async def list_all(
    session: SessionDep, tenant: TenantDep, limit: Limit = 20, cursor: Cursor = None
) -> Page[BaseModelRead]:
    """Registered base models, newest first."""
    rows, more = await BaseModelRepository(session, tenant).page(limit, cursor)
    following = encode_cursor(rows[-1].created_at, rows[-1].id) if more else None
    return Page(data=[service.present(row) for row in rows], has_more=more, next_cursor=following)


@router.get(
    "/{name:path}",
    dependencies=[requires("adapters:read")],
    operation_id="get_base_model",
    responses=responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND),
)
async def get(name: str, session: SessionDep, tenant: TenantDep) -> BaseModelRead:
    """One base model."""
    return service.present(await service.get(BaseModelRepository(session, tenant), name))
