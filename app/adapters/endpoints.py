"""``/adapters``."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, File, Form, Request, Response, UploadFile

from app.adapters import peft_config
from app.adapters.lineage import lineage
from app.adapters.present import present_serving, present_version
from app.adapters.references import VersionNumber, VersionReference
from app.adapters.repository import AdapterRepository
from app.adapters.schemas import AdapterName, AdapterRead, AdapterUpdate, LineageRead, ServingRead, VersionRead
from app.adapters.service import AdapterService, AdapterUpload
from app.adapters.tables import AdapterVersion
from app.adapters.training import MAX_RECIPE_BYTES, parse_recipe
from app.auth.guard import GuardedRoute
from app.base_models.repository import BaseModelRepository
from app.base_models.schemas import Name
from app.datasets.repository import DatasetRepository
from app.dependencies import SessionDep, StorageDep, TenantDep, requires
from app.kit.downloads import PRIVATE, Blob, download, download_responses
from app.kit.pagination import Cursor, Limit, Page, encode_cursor
from app.kit.problems import TooLarge, responses
from app.kit.storage import Storage
from app.kit.text import Text

router = APIRouter(prefix="/adapters", tags=["adapters"], route_class=GuardedRoute)
ARCHIVE_TYPE = "application/gzip"
ARCHIVE = download_responses("tar.gz of a PEFT adapter directory.", ARCHIVE_TYPE)
_READ = responses(HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND)
_READ_VERSION = {**_READ, **responses(HTTPStatus.GONE)}


async def adapter_service(session: SessionDep, tenant: TenantDep, storage: StorageDep) -> AdapterService:
    """The service for the caller's tenant."""
    bases, datasets = BaseModelRepository(session, tenant), DatasetRepository(session, tenant)
    return AdapterService(AdapterRepository(session, tenant), bases, datasets, storage, tenant)


ServiceDep = Annotated[AdapterService, Depends(adapter_service)]


@router.post(
    "",
    dependencies=[requires("adapters:write")],
    status_code=HTTPStatus.CREATED,
    operation_id="register_adapter",
    responses=responses(
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
    ),
)
async def register(
    service: ServiceDep,
    name: Annotated[AdapterName, Form()],
    base_model: Annotated[Name, Form()],
    adapter_config: Annotated[UploadFile, File(description="PEFT's adapter_config.json of a plain LoRA.")],
    adapter_model: Annotated[UploadFile, File(description="adapter_model.safetensors.")],
    retain_set: Annotated[
        Text | None, Form(max_length=64, description="Retain set for jobs on this adapter that name none.")
    ] = None,
    training_set: Annotated[
        Text | None, Form(max_length=64, description="What the adapter was trained on; needs recipe.")
    ] = None,
    recipe: Annotated[
        Text | None, Form(max_length=MAX_RECIPE_BYTES, description="How it was trained: a Recipe as JSON.")
    ] = None,
) -> AdapterRead:
    """Register a LoRA adapter; it becomes version 1."""
    trained = parse_recipe(training_set, recipe)
    config = await adapter_config.read(peft_config.MAX_BYTES + 1)
    if len(config) > peft_config.MAX_BYTES:
        raise TooLarge(f"adapter_config exceeds {peft_config.MAX_BYTES} bytes")
    upload = AdapterUpload(
        name,
        base_model,
        config,
        adapter_model.file,
        adapter_model.size or 0,
        default_retain_set=retain_set,
        training_set=training_set,
        recipe=trained,
    )
    adapter = await service.register(upload)
    return (await service.present([adapter]))[0]


@router.get(
    "",
    dependencies=[requires("adapters:read")],
    operation_id="list_adapters",
    responses=responses(HTTPStatus.UNAUTHORIZED),
)
async def list_all(
    service: ServiceDep, session: SessionDep, tenant: TenantDep, limit: Limit = 20, cursor: Cursor = None
) -> Page[AdapterRead]:
    """Adapters, newest first."""
    rows, more = await AdapterRepository(session, tenant).page(limit, cursor)
    following = encode_cursor(rows[-1].created_at, rows[-1].id) if more else None
    return Page(data=await service.present(rows), has_more=more, next_cursor=following)


@router.get("/{name}", dependencies=[requires("adapters:read")], operation_id="get_adapter", responses=_READ)
async def get(name: str, service: ServiceDep) -> AdapterRead:
    """One adapter."""
    return (await service.present([await service.get(name)]))[0]


@router.patch(
    "/{name}",
    dependencies=[requires("adapters:write")],
    operation_id="update_adapter",
    responses={**_READ, **responses(HTTPStatus.UNPROCESSABLE_ENTITY)},
)
async def update(name: str, body: AdapterUpdate, service: ServiceDep) -> AdapterRead:
    """Set or clear the default retain set."""
    return (await service.present([await service.update(name, body.default_retain_set)]))[0]


@router.delete(
    "/{name}/training-set",
    dependencies=[requires("adapters:write")],
    status_code=HTTPStatus.NO_CONTENT,
    operation_id="drop_training_set",
    responses={**_READ, **responses(HTTPStatus.CONFLICT)},
)
async def drop_training_set(name: str, service: ServiceDep) -> None:
    """Destroy the adapter's training set now: no job trains it anew any more. 409 while one is to."""
    await service.drop_training_set(name)


@router.get(
    "/{name}/lineage", dependencies=[requires("adapters:read")], operation_id="get_adapter_lineage", responses=_READ
)
async def get_lineage(
    name: str,
    service: ServiceDep,
    session: SessionDep,
    tenant: TenantDep,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> LineageRead:
    """Which version came from which, through which run and for which jobs, newest first."""
    return await lineage(AdapterRepository(session, tenant), await service.get(name), limit, cursor)


@router.get(
    "/{name}/versions",
    dependencies=[requires("adapters:read")],
    operation_id="list_adapter_versions",
    responses=_READ,
)
async def list_versions(
    name: str,
    service: ServiceDep,
    session: SessionDep,
    tenant: TenantDep,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Page[VersionRead]:
    """Versions of an adapter, newest first."""
    adapter = await service.get(name)
    rows, more = await AdapterRepository(session, tenant).version_page(adapter.id, limit, cursor)
    following = encode_cursor(rows[-1].created_at, rows[-1].id) if more else None
    return Page(data=[present_version(name, row) for row in rows], has_more=more, next_cursor=following)


@router.get(
    "/{name}/versions/{number}",
    dependencies=[requires("adapters:read")],
    operation_id="get_adapter_version",
    responses=_READ_VERSION,
)
async def get_version(name: str, number: VersionReference, service: ServiceDep) -> VersionRead:
    """One version, by number, "head" or alias."""
    return present_version(name, await service.version(name, number))


@router.delete(
    "/{name}/versions/{number}",
    dependencies=[requires("adapters:write")],
    status_code=HTTPStatus.NO_CONTENT,
    operation_id="purge_adapter_version",
    responses={**_READ, **responses(HTTPStatus.CONFLICT)},
)
async def purge_version(name: str, number: VersionNumber, service: ServiceDep) -> None:
    """Delete weights and archive of a version now. 409 for the head, and while a job needs it."""
    await service.purge(name, number)


@router.get(
    "/{name}/versions/{number}/serving",
    dependencies=[requires("adapters:read")],
    operation_id="get_adapter_version_serving",
    responses=_READ_VERSION,
)
async def get_serving(name: str, number: VersionReference, service: ServiceDep) -> ServingRead:
    """Ready commands for PEFT, vLLM, LoRAX and TGI."""
    return present_serving(name, await service.downloadable(name, number))


@router.get(
    "/{name}/versions/{number}/download",
    dependencies=[requires("adapters:read")],
    operation_id="download_adapter_version",
    response_class=Response,
    responses={**ARCHIVE, **_READ},
)
@router.head("/{name}/versions/{number}/download", dependencies=[requires("adapters:read")], include_in_schema=False)
async def download_version(
    name: str, number: VersionReference, request: Request, service: ServiceDep, storage: StorageDep
) -> Response:
    """The version as a tar.gz; its strong ETag is its sha256."""
    return await archive_response(request, storage, name, await service.downloadable(name, number))


async def archive_response(
    request: Request, storage: Storage, name: str, version: AdapterVersion, cache: Mapping[str, str] = PRIVATE
) -> Response:
    """The archive of a version. Raises Gone when its bytes are no longer held.

    Args:
        cache: headers that say who may keep it.
    """
    filename = f"{name}-v{version.number}.tar.gz"
    blob = Blob(version.archive_key, version.archive_sha256, filename, ARCHIVE_TYPE, cache)
    return await download(request, storage, blob)
