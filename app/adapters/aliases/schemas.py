"""What aliases look like from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.adapters.schemas import VersionStatus


class AliasWrite(BaseModel):
    """Where an alias is to point."""

    model_config = ConfigDict(extra="forbid")

    version: Annotated[int, Field(ge=1, lt=10**9, description="Number of a ready version.")]


class AliasRead(BaseModel):
    """A name for a version that can be moved to another one."""

    object: Literal["adapter_alias"] = "adapter_alias"
    adapter: str
    alias: str
    version: int
    status: Annotated[
        VersionStatus,
        Field(description="Of that version. What is asked through the alias is 410 once it is not ready."),
    ]
    created_at: datetime
    updated_at: datetime
