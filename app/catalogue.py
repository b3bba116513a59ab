"""``/methods`` and ``/policies``: what a job may ask for."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field

from app.auth.guard import GuardedRoute
from app.dependencies import TenantDep, requires
from app.kit.problems import responses
from app.methods import (
    FORGET_LOSSES,
    METHOD_REQUESTS,
    POLICIES,
    RETAIN_LOSSES,
    SCHEDULES,
    STOP_RULES,
    Policy,
    describe,
)

router = APIRouter(tags=["catalogue"], route_class=GuardedRoute)


class KnobsRead(BaseModel):
    """A choice by its ``type``, with its defaults and the JSON Schema of its knobs."""

    type: str
    description: str
    defaults: dict[str, Any]
    json_schema: dict[str, Any]


class MethodRead(KnobsRead):
    """A method."""

    object: Literal["method"] = "method"


class MethodList(BaseModel):
    """Every method, and what may be chosen within each."""

    object: Literal["list"] = "list"
    data: list[MethodRead]
    has_more: bool = False
    next_cursor: str | None = None
    forget_losses: Annotated[list[KnobsRead], Field(description="For `forget_loss` of any method.")]
    retain_losses: Annotated[list[KnobsRead], Field(description="For `retain_loss` of any method.")]
    schedules: Annotated[list[KnobsRead], Field(description="For `schedule` of any method.")]
    stop_rules: Annotated[list[KnobsRead], Field(description="For `stop` of any method.")]


class PolicyList(BaseModel):
    """Every named policy."""

    object: Literal["list"] = "list"
    data: list[Policy]
    has_more: bool = False
    next_cursor: str | None = None


@router.get(
    "/methods",
    dependencies=[requires("jobs:write", "jobs:read")],
    operation_id="list_methods",
    responses=responses(HTTPStatus.UNAUTHORIZED),
)
async def methods(_tenant: TenantDep) -> MethodList:
    """Methods, losses, schedules and stop rules: their defaults, and what every knob does."""
    return MethodList(
        data=[MethodRead(**knobs) for knobs in _knobs(METHOD_REQUESTS)],
        forget_losses=[KnobsRead(**knobs) for knobs in _knobs(FORGET_LOSSES)],
        retain_losses=[KnobsRead(**knobs) for knobs in _knobs(RETAIN_LOSSES)],
        schedules=[KnobsRead(**knobs) for knobs in _knobs(SCHEDULES)],
        stop_rules=[KnobsRead(**knobs) for knobs in _knobs(STOP_RULES)],
    )


def _knobs(members: Mapping[str, type[BaseModel]]) -> list[dict[str, Any]]:
    """The fields of `KnobsRead` for every member of a union."""
    return [
        {
            "type": name,
            "description": describe(kind),
            "defaults": kind().model_dump(),
            "json_schema": kind.model_json_schema(),
        }
        for name, kind in members.items()
    ]


@router.get(
    "/policies",
    dependencies=[requires("jobs:write", "jobs:read")],
    operation_id="list_policies",
    responses=responses(HTTPStatus.UNAUTHORIZED),
)
async def policies(_tenant: TenantDep) -> PolicyList:
    """Named acceptance policies and their thresholds."""
    return PolicyList(data=list(POLICIES.values()))
