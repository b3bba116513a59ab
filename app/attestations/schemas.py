"""Signing keys as they are shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field


class KeyRead(BaseModel):
    """The public half of a key that signs attestations, or once did."""

    object: Literal["signing_key"] = "signing_key"
    key_id: Annotated[str, Field(description="sha256 of the key's DER; `keyid` of a signature.")]
    algorithm: Literal["ed25519"] = "ed25519"
    public_key: Annotated[str, Field(description="Base64 of the raw 32 bytes.")]
    public_key_pem: str
    created_at: Annotated[datetime, Field(description="When it was first used.")]
    retired_at: Annotated[datetime | None, Field(description="When another key took its place.")]


class KeyList(BaseModel):
    """Every key that ever signed. Never a page of them: a reader needs all."""

    object: Literal["list"] = "list"
    data: list[KeyRead]
    has_more: bool = False
    next_cursor: str | None = None
