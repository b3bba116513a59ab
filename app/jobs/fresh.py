"""A job on a base model instead of an adapter: it begins a fresh LoRA, whose name it reserves.

The name is a row in `adapters` without a version, which nobody sees but such jobs. That one job at a time holds it,
and none once it has a version, is kept by the index `uq_unlearn_jobs_fresh`: here it is only said in words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from sqlalchemy import Table, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters.tables import Adapter
from app.adapters.weights import Shape, has_module
from app.base_models.tables import BaseModelRow
from app.jobs.schemas import FreshLora, JobCreate
from app.jobs.tables import LIVE, UnlearnJob
from app.kit.ids import new_id
from app.kit.problems import Conflict, FieldError, invalid_field, invalid_fields
from app.methods import MethodRequest

NO_BASE_ANCHOR = (
    'must be "none" here: "base" draws the answers to their likelihood under the base model, which is what knows the '
    "records"
)


def check_fields(request: JobCreate) -> None:
    """Either an adapter, or a base model and a name for the result. Raises Invalid."""
    if errors := list(_misplaced(request)):
        raise invalid_fields(errors)


def _misplaced(request: JobCreate) -> Iterator[FieldError]:
    fresh = {"base_model": request.base_model, "result_adapter": request.result_adapter, "lora": request.lora}
    given = [name for name, value in fresh.items() if value is not None]
    if request.adapter is not None:
        yield from (FieldError(f"/{name}", "is for a fresh LoRA; leave it out, or adapter") for name in given)
    elif not given:
        yield FieldError("/adapter", "is needed, or base_model and result_adapter to start a fresh LoRA")
    else:
        missing = [name for name in ("base_model", "result_adapter") if name not in given]
        yield from (FieldError(f"/{name}", "is needed to start a fresh LoRA") for name in missing)


async def reserve(session: AsyncSession, tenant_id: str, request: JobCreate) -> str:
    """The name of the adapter that the job begins, which has a row from now on.

    Raises:
        Invalid: there is no such base model, or it has no module of a name in `lora`.
        Conflict: the name belongs to another base model.
    """
    base = await _base(session, tenant_id, request)
    name = cast(str, request.result_adapter)
    of_name = select(Adapter.base_model_id).where(Adapter.tenant_id == tenant_id, Adapter.name == name)
    on = await session.scalar(of_name)
    if on is None:
        # No lock on a row that others hold: whoever releases a version locks its dataset first, then the adapter.
        row = {"id": new_id("ad"), "tenant_id": tenant_id, "base_model_id": base.id, "name": name}
        new = insert(cast(Table, Adapter.__table__)).values(**row, head=0, fresh=True)
        await session.execute(new.on_conflict_do_nothing())
        on = await session.scalar(of_name)
    if on != base.id:
        raise Conflict(f"the name {name!r} belongs to an adapter on another base model; take another result_adapter")
    return name


async def check_free(session: AsyncSession, tenant_id: str, adapter: Adapter) -> None:
    """Raise Conflict where the adapter has a version, or a job that has not ended is to make its first one."""
    if adapter.head:
        raise Conflict(f"an adapter named {adapter.name!r} is registered already; take another result_adapter")
    of_adapter = select(UnlearnJob.id).where(UnlearnJob.tenant_id == tenant_id, UnlearnJob.adapter_id == adapter.id)
    job_id = await session.scalar(of_adapter.where(UnlearnJob.status.in_(LIVE)))
    if job_id is not None:
        raise Conflict(
            f"a job that has not ended holds this result_adapter: {job_id}",
            headers={"Location": f"/unlearn-jobs/{job_id}"},
        )


def overtaken() -> Conflict:
    """Another job came to hold the name, or to have made its first version, in the meantime."""
    return Conflict("another job holds this result_adapter by now, or has made its first version")


async def _base(session: AsyncSession, tenant_id: str, request: JobCreate) -> BaseModelRow:
    base = await session.scalar(
        select(BaseModelRow).where(BaseModelRow.tenant_id == tenant_id, BaseModelRow.name == request.base_model)
    )
    if base is None:
        raise invalid_field("/base_model", "no base model of this name is registered; POST /base-models first")
    modules = request.lora.target_modules if request.lora else "all-linear"
    if isinstance(modules, list):
        _check_modules(modules, base.shapes)
    return base


def _check_modules(modules: list[str], shapes: Mapping[str, Shape]) -> None:
    errors = [
        FieldError(f"/lora/target_modules/{index}", "the base model has no module of this name with a weight matrix")
        for index, name in enumerate(modules)
        if not has_module(shapes, name)
    ]
    if errors:
        raise invalid_fields(errors)


def stored(request: JobCreate) -> dict[str, Any] | None:
    """What a job stores of the LoRA that it begins, with every knob resolved; None where it begins none."""
    if request.base_model is None:
        return None
    lora = request.lora or FreshLora()
    alpha = lora.alpha if lora.alpha is not None else 2.0 * lora.rank
    return {"base_model": request.base_model, **lora.model_copy(update={"alpha": alpha}).model_dump()}


def unanchored(method: MethodRequest) -> MethodRequest:
    """The method without an anchor at the base model. Raises Invalid where the caller asked for that."""
    if method.anchor == "base" and "anchor" in method.model_fields_set:
        raise invalid_field("/method/anchor", NO_BASE_ANCHOR)
    return method.model_copy(update={"anchor": "none"})
