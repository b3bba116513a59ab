"""Registering base models."""

from __future__ import annotations

from anyio import to_thread
from sqlalchemy.exc import IntegrityError

from app.base_models.directory import inspect_directory
from app.base_models.repository import BaseModelRepository
from app.base_models.schemas import BaseModelCreate, BaseModelRead
from app.base_models.tables import BaseModelRow
from app.kit.ids import new_id
from app.kit.problems import Conflict, NotFound
from app.settings import Settings


async def register(
    repository: BaseModelRepository, tenant_id: str, settings: Settings, request: BaseModelCreate
) -> BaseModelRow:
    """Check the source and register it under its name.

    Raises:
        Invalid: the source may not be used.
        Conflict: the name is taken.
    """
    taken = Conflict(f"a base model named {request.name!r} is registered already; take another name")
    if await repository.by_name(request.name) is not None:
        raise taken
    found = await to_thread.run_sync(inspect_directory, request.source, settings.model_roots)
    row = BaseModelRow(
        id=new_id("bm"),
        tenant_id=tenant_id,
        name=request.name,
        source=request.source,
        revision=request.revision,
        directory=str(found.path),
        architecture=found.architecture,
        digest=found.digest,
        parameters=found.parameters,
        shapes={name: list(shape) for name, shape in found.shapes.items()},
    )
    try:
        await repository.add(row)
    except IntegrityError:
        raise taken from None
    return row


async def get(repository: BaseModelRepository, name: str) -> BaseModelRow:
    """The base model of that name. Raises NotFound."""
    row = await repository.by_name(name)
    if row is None:
        raise NotFound("there is no base model of this name; GET /base-models lists them")
    return row


def present(row: BaseModelRow) -> BaseModelRead:
    """The outside view."""
    return BaseModelRead(
        id=row.id,
        name=row.name,
        source=row.source,
        revision=row.revision,
        architecture=row.architecture,
        parameters=row.parameters,
        digest=row.digest,
        created_at=row.created_at,
    )
