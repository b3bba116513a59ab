"""``/adapters/{name}/aliases``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Response

from app.adapters.aliases.repository import AliasRepository, AliasRow
from app.adapters.aliases.schemas import AliasRead, AliasWrite
from app.adapters.endpoints import ServiceDep
from app.adapters.references import is_alias
from app.auth.guard import GuardedRoute
from app.dependencies import SessionDep, TenantDep, requires
from app.kit.pagination import Cursor, Limit, Page, encode_cursor
from app.kit.problems import NotFound, invalid_field, responses

router = APIRouter(prefix="/adapters/{name}/aliases", tags=["adapters"], route_class=GuardedRoute)
_READ = responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND)
AliasName = Annotated[str, Path(description="Begins with a lower-case letter, and is not `head`.")]


async def alias_repository(session: SessionDep, tenant: TenantDep) -> AliasRepository:
    """Aliases of the caller's tenant."""
    return AliasRepository(session, tenant)


AliasesDep = Annotated[AliasRepository, Depends(alias_repository)]


@router.put(
    "/{alias}",
    dependencies=[requires("adapters:write")],
    operation_id="set_adapter_alias",
    responses={
        201: {"model": AliasRead, "description": "The alias was made."},
        **_READ,
        **responses(HTTPStatus.CONFLICT, HTTPStatus.UNPROCESSABLE_ENTITY),
    },
)
async def put(
    name: str, alias: AliasName, body: AliasWrite, response: Response, service: ServiceDep, aliases: AliasesDep
) -> AliasRead:
    """Point an alias at a version: make it, or move it. 409 for a version that is no longer handed out."""
    adapter = await service.get(name)
    if not is_alias(alias):
        raise invalid_field("/path/alias", "must be of the form [a-z][a-z0-9._-]*, at most 64 long, and not 'head'")
    version = await service.to_point_at(adapter, body.version)
    before = await aliases.by_name(adapter, alias)
    await aliases.point(adapter, alias, version, before)
    response.status_code = HTTPStatus.OK if before else HTTPStatus.CREATED
    return _present(name, await _found(aliases, service, name, alias))


@router.get("", dependencies=[requires("adapters:read")], operation_id="list_adapter_aliases", responses=_READ)
async def list_all(
    name: str, service: ServiceDep, aliases: AliasesDep, limit: Limit = 20, cursor: Cursor = None
) -> Page[AliasRead]:
    """Aliases of an adapter, newest first."""
    rows, more = await aliases.page(await service.get(name), limit, cursor)
    following = encode_cursor(rows[-1][0].created_at, rows[-1][0].id) if more else None
    return Page(data=[_present(name, row) for row in rows], has_more=more, next_cursor=following)


@router.get("/{alias}", dependencies=[requires("adapters:read")], operation_id="get_adapter_alias", responses=_READ)
async def get(name: str, alias: AliasName, service: ServiceDep, aliases: AliasesDep) -> AliasRead:
    """Where an alias points, and whether that version is still handed out."""
    return _present(name, await _found(aliases, service, name, alias))


@router.delete(
    "/{alias}",
    dependencies=[requires("adapters:write")],
    status_code=HTTPStatus.NO_CONTENT,
    operation_id="delete_adapter_alias",
    responses=_READ,
)
async def delete(name: str, alias: AliasName, service: ServiceDep, aliases: AliasesDep) -> None:
    """Take an alias away; the version stays as it is."""
    found = await _found(aliases, service, name, alias)
    await aliases.remove(await service.get(name), found[0])


async def _found(aliases: AliasRepository, service: ServiceDep, name: str, alias: str) -> AliasRow:
    row = await aliases.by_name(await service.get(name), alias)
    if row is None:
        raise NotFound(f"the adapter has no such alias; GET /adapters/{name}/aliases lists them")
    return row


def _present(name: str, row: AliasRow) -> AliasRead:
    alias, version = row
    return AliasRead.model_validate(
        {
            "adapter": name,
            "alias": alias.name,
            "version": version.number,
            "status": version.status,
            "created_at": alias.created_at,
            "updated_at": alias.updated_at,
        }
    )
