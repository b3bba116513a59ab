"""What datasets look like from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

Purpose = Literal["forget", "retain", "holdout", "training"]


class DatasetRead(BaseModel):
    """What is known of a dataset. Its records are never served back."""

    object: Literal["dataset"] = "dataset"
    id: str
    purpose: Purpose
    records: int
    duplicates: Annotated[int | None, Field(description="Records that are the same as an earlier one of the set.")]
    bytes: Annotated[int, Field(description="Of the JSON Lines, unpacked.")]
    sha256: Annotated[str, Field(description="Of the JSON Lines, unpacked.")]
    created_at: datetime
    purge_at: datetime
    purged_at: datetime | None
