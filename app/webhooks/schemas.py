"""What webhooks look like from outside."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from app.kit.addresses import MAX_URL
from app.kit.text import Text
from app.webhooks.events import EVENTS, EventType
from app.webhooks.signing import Signature

DeliveryStatus = Literal["pending", "succeeded", "failed"]


def _each_once(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


CallbackUrl = Annotated[
    Text,
    Field(
        min_length=1,
        max_length=MAX_URL,
        description="A public https URL, in plain ASCII.",
        examples=["https://dsr.example.com/lethe"],
    ),
]
_Events = Annotated[
    list[EventType],
    Field(max_length=len(EVENTS), description="What to be told of; empty means everything, future types included."),
    AfterValidator(_each_once),
]
_Signatures = Annotated[
    list[Signature],
    Field(min_length=1, max_length=2, description="v1 is HMAC-SHA256, v1a is Ed25519; with both, either verifies."),
    AfterValidator(_each_once),
]


class EndpointCreate(BaseModel):
    """A receiver of webhooks."""

    model_config = ConfigDict(extra="forbid")

    url: CallbackUrl
    events: _Events = []
    signatures: _Signatures = ["v1"]


class EndpointUpdate(BaseModel):
    """What is to change; the rest stays."""

    model_config = ConfigDict(extra="forbid")

    url: CallbackUrl | None = None
    events: _Events | None = None
    signatures: _Signatures | None = None
    enabled: bool | None = None


class EndpointRead(BaseModel):
    """A receiver of webhooks."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    url: str
    events: list[str]
    signatures: list[Signature]
    enabled: bool
    disabled_reason: Annotated[
        Literal["gone", "failing", "caller"] | None,
        Field(description="gone: it answered 410; failing: every retry failed; caller: switched off by PATCH."),
    ]
    public_key: Annotated[str, Field(description="whpk_..., verifies v1a signatures.")]
    created_at: datetime


class EndpointSecret(EndpointRead):
    """A receiver with its new secret, which is not shown again."""

    secret: Annotated[str, Field(description="whsec_..., verifies v1 signatures. Shown this once.")]


class CallbackKeyRead(BaseModel):
    """What signs requests to the callback_url of this tenant's jobs."""

    object: Literal["webhook_callback_key"] = "webhook_callback_key"
    public_key: Annotated[str, Field(description="whpk_..., verifies v1a signatures.")]
    created_at: datetime


class CallbackKeySecret(CallbackKeyRead):
    """The key with its new secret, which is not shown again."""

    secret: Annotated[str, Field(description="whsec_..., verifies v1 signatures. Shown this once.")]


class DeliveryRead(BaseModel):
    """One event for one receiver."""

    id: Annotated[str, Field(description="The webhook-id, the same in every attempt.")]
    object: Literal["webhook_delivery"] = "webhook_delivery"
    endpoint: Annotated[
        str | None, Field(description="Null for the callback_url of a job and for the status callbacks of OpenDSR.")
    ]
    type: str
    subject: Annotated[str, Field(description="What the event is about, such as a job's id.")]
    status: DeliveryStatus
    attempts: int
    next_at: Annotated[datetime | None, Field(description="When it is sent next; null once it has ended.")]
    response_status: Annotated[int | None, Field(description="Status of the last answer; what it said is not kept.")]
    error: Annotated[str | None, Field(description="Why the last attempt failed, one word.")]
    created_at: datetime
    finished_at: datetime | None


class EventData(BaseModel):
    """What an event is about."""

    id: str


class Event(BaseModel):
    """The body of a webhook: what happened to which thing. Ask for the thing to know more."""

    type: str
    timestamp: Annotated[datetime, Field(description="When it happened.")]
    data: EventData
