"""What adapters look like from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.kit.text import Text
from app.methods import Recipe

AdapterName = Annotated[
    str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$", examples=["support-bot"])
]

VersionStatus = Literal["ready", "superseded", "purged"]


class VersionRead(BaseModel):
    """One immutable version of an adapter."""

    object: Literal["adapter_version"] = "adapter_version"
    adapter: str
    version: int
    status: VersionStatus
    sha256: Annotated[str, Field(description="Of the archive that the download answers.")]
    bytes: int
    weights_sha256: Annotated[str, Field(description="Of adapter_model.safetensors in the archive.")]
    source_version: Annotated[int | None, Field(description="The version that it was made from.")]
    run_id: Annotated[str | None, Field(description="The run that made it, null for an upload.")]
    created_at: datetime
    superseded_at: datetime | None
    purged_at: Annotated[datetime | None, Field(description="When its weights and archive were deleted.")]


class ServingNeeds(BaseModel):
    """What a server has to bring to serve a version."""

    base_model: str
    revision: str | None
    rank: Annotated[int, Field(description="The largest of all modules.")]
    max_lora_rank: Annotated[int | None, Field(description="vLLM's --max-lora-rank; null where none suffices.")]
    target_modules: list[str]


class AdapterRead(BaseModel):
    """A named series of versions on one base model."""

    object: Literal["adapter"] = "adapter"
    id: str
    name: str
    base_model: str
    head: Annotated[int, Field(description="The newest ready version.")]
    fresh: Annotated[
        bool,
        Field(description="Begun by an unlearn job, to remove what the base model itself knows."),
    ]
    head_status: Annotated[VersionStatus, Field(description="Of the head.")]
    versions: Annotated[int, Field(description="How many versions there are, superseded and purged ones included.")]
    serving: Annotated[ServingNeeds, Field(description="Of the head; the commands are at /versions/head/serving.")]
    default_retain_set: str | None
    training_set: Annotated[
        str | None,
        Field(description="What the head was trained on, without what was unlearned since; null where none is held."),
    ]
    recipe: Annotated[Recipe | None, Field(description="How it was trained.")]
    unmatched_records: Annotated[
        int,
        Field(
            description="Records that were unlearned without being found in the training set: training anew would "
            "bring them back."
        ),
    ]
    created_at: datetime


class AdapterUpdate(BaseModel):
    """What may be changed about an adapter."""

    model_config = ConfigDict(extra="forbid")

    default_retain_set: Annotated[
        Text | None, Field(max_length=64, description="Retain set for jobs that name none; null clears it.")
    ]


class ServerCommands(BaseModel):
    """Shell commands: how a server is started with the adapter, and how it is asked."""

    start: str
    request: str


class ServingRead(BaseModel):
    """How a version is served."""

    object: Literal["serving"] = "serving"
    adapter: str
    version: int
    needs: ServingNeeds
    unpack: Annotated[str, Field(description="Shell: puts the archive's files where the commands look for them.")]
    peft: Annotated[str, Field(description="Python.")]
    vllm: Annotated[ServerCommands | None, Field(description="null where the rank is beyond what vLLM serves.")]
    lorax: ServerCommands
    tgi: ServerCommands
    notes: Annotated[list[str], Field(description="What these servers would not do right by themselves.")]


class LineageJob(BaseModel):
    """A job that a version answers."""

    id: str
    method: Annotated[str, Field(description="The method's type.")]
    verdict: Annotated[Literal["passed", "failed"] | None, Field(description="The gate's.")]
    subject_request_id: str | None


class LineageNode(BaseModel):
    """One version, with what made it."""

    version: int
    status: VersionStatus
    run_id: Annotated[str | None, Field(description="The run that made it, null for an upload.")]
    jobs: list[LineageJob]
    weights_sha256: str
    sha256: Annotated[str, Field(description="Of the archive.")]
    attestation_sha256: Annotated[str | None, Field(description="Of attestation.dsse.json in the archive.")]
    created_at: datetime
    superseded_at: datetime | None
    purged_at: datetime | None


class LineageEdge(BaseModel):
    """A run made the result from the source."""

    source: int
    result: int
    run_id: str | None


class LineageRead(BaseModel):
    """Which version came from which, newest first, a page at a time."""

    object: Literal["lineage"] = "lineage"
    adapter: str
    head: int
    nodes: list[LineageNode]
    edges: Annotated[list[LineageEdge], Field(description="Into the nodes of this page.")]
    has_more: bool
    next_cursor: str | None
