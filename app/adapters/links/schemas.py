"""What download links look like from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_SECONDS = 24 * 3600


class LinkCreate(BaseModel):
    """How long a link is to work."""

    model_config = ConfigDict(extra="forbid")

    expires_in: Annotated[int, Field(ge=1, le=MOST_SECONDS, description="In seconds.")] = 15 * 60


class LinkRead(BaseModel):
    """A URL from which one version can be downloaded without an API key, for a while."""

    object: Literal["download_link"] = "download_link"
    adapter: str
    version: int
    url: Annotated[str, Field(description="Whoever knows it may download: hand it on as you would a password.")]
    expires_at: datetime
    sha256: Annotated[str, Field(description="Of the archive.")]
    bytes: int
