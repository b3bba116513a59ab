"""What API keys look like from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from app.auth.scopes import SCOPES, Scope
from app.kit.text import Text

DAY = 24 * 3600


def _in_order(scopes: list[Scope]) -> list[Scope]:
    """Each once, in the order in which they are listed everywhere."""
    return [scope for scope in SCOPES if scope in scopes]


class ApiKeyCreate(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[Text, Field(min_length=1, max_length=128, examples=["privacy portal"])]
    scopes: Annotated[
        list[Scope],
        Field(min_length=1, max_length=len(SCOPES), examples=[["jobs:write", "jobs:read"]]),
        AfterValidator(_in_order),
    ]
    expires_at: Annotated[AwareDatetime | None, Field(description="From then on it is refused; never when null.")] = (
        None
    )


class ApiKeyRotate(BaseModel):
    """How to rotate a key."""

    model_config = ConfigDict(extra="forbid")

    grace_seconds: Annotated[
        int, Field(ge=0, le=30 * DAY, description="How long the secret before stays good; 0 ends it now.")
    ] = DAY


class ApiKeyRead(BaseModel):
    """What is known of a key; its secret is not."""

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: Annotated[datetime | None, Field(description="To the minute.")]
    rotated_at: datetime | None
    previous_until: Annotated[
        datetime | None, Field(description="Until when the secret before the last rotation is good.")
    ]
    revoked_at: datetime | None


class ApiKeyWithSecret(ApiKeyRead):
    """A key with its new secret, which is shown this once."""

    key: Annotated[str, Field(examples=["lethe_..."], description="Send it as `Authorization: Bearer`.")]
