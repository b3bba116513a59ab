"""What datasets look like from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

Purpose = Literal["forget", "retain", "holdout"]


class DatasetRead(BaseModel):
    """What is known of a dataset. Its records are never served back."""

    object: Literal["dataset"] = "dataset"
    id: str
    purpose: Purpose
    records: int
    bytes: int
    sha256: str
    created_at: datetime
    purge_at: datetime
    purged_at: datetime | None
