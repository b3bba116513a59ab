"""``/methods`` and ``/policies``: what a job may ask for."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel

from app.dependencies import TenantDep
from app.kit.problems import responses
from app.methods import POLICIES, BlurMethodRequest, Policy

router = APIRouter(tags=["catalogue"])


class MethodRead(BaseModel):
    """A method with its defaults and the JSON Schema of its knobs."""

    object: Literal["method"] = "method"
    type: str
    description: str
    defaults: dict[str, Any]
    json_schema: dict[str, Any]


class MethodList(BaseModel):
    """Every method."""

    object: Literal["list"] = "list"
    data: list[MethodRead]
    has_more: bool = False
    next_cursor: str | None = None


class PolicyList(BaseModel):
    """Every named policy."""

    object: Literal["list"] = "list"
    data: list[Policy]
    has_more: bool = False
    next_cursor: str | None = None


@router.get("/methods", operation_id="list_methods", responses=responses(HTTPStatus.UNAUTHORIZED))
async def methods(_tenant: TenantDep) -> MethodList:
    """Methods, their defaults, and what every knob does."""
    blur = MethodRead(
        type="blur",
        description="Bi-level unlearning: forgetting has priority, retaining uses what is orthogonal to it.",
        defaults=BlurMethodRequest().model_dump(),
        json_schema=BlurMethodRequest.model_json_schema(),
    )
    return MethodList(data=[blur])


@router.get("/policies", operation_id="list_policies", responses=responses(HTTPStatus.UNAUTHORIZED))
async def policies(_tenant: TenantDep) -> PolicyList:
    """Named acceptance policies and their thresholds."""
    return PolicyList(data=list(POLICIES.values()))
