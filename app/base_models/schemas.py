"""What base models look like from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[
    str,
    Field(
        min_length=1,
        max_length=128,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$",
        examples=["meta-llama/Llama-3.2-1B-Instruct"],
        description="The public name, as it stands in an adapter's configuration.",
    ),
]


class BaseModelCreate(BaseModel):
    """A base model to register."""

    model_config = ConfigDict(extra="forbid")

    name: Name
    source: Annotated[
        str,
        Field(
            min_length=1,
            max_length=4096,
            description="A directory below one of the allowed roots (LETHE_MODEL_ROOTS), in transformers' layout "
            "with safetensors weights; absolute, or relative to a root.",
        ),
    ]
    revision: Annotated[
        str | None, Field(max_length=128, pattern=r"^[A-Za-z0-9._-]+$", description="Noted beside the name.")
    ] = None


class BaseModelRead(BaseModel):
    """A registered base model."""

    object: Literal["base_model"] = "base_model"
    id: str
    name: str
    source: str
    revision: str | None
    architecture: str
    parameters: int
    digest: Annotated[str, Field(description="sha256 over the names and sha256 of its configuration and weights.")]
    created_at: datetime
