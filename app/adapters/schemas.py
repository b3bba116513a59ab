"""What adapters look like from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

AdapterName = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$", examples=["support-bot"])
]


class VersionRead(BaseModel):
    """One immutable version of an adapter."""

    object: Literal["adapter_version"] = "adapter_version"
    adapter: str
    version: int
    status: Literal["ready", "superseded", "purged"]
    sha256: Annotated[str, Field(description="Of the archive that the download answers.")]
    bytes: int
    weights_sha256: Annotated[str, Field(description="Of adapter_model.safetensors in the archive.")]
    source_version: Annotated[int | None, Field(description="The version that it was made from.")]
    run_id: Annotated[str | None, Field(description="The run that made it, null for an upload.")]
    created_at: datetime
    superseded_at: datetime | None


class AdapterRead(BaseModel):
    """A named series of versions on one base model."""

    object: Literal["adapter"] = "adapter"
    id: str
    name: str
    base_model: str
    head: Annotated[int, Field(description="The newest ready version.")]
    default_retain_set: str | None
    created_at: datetime
