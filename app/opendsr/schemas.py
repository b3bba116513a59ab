"""The words of OpenDSR 2.0 (https://github.com/opengdpr/OpenDSR, specification.md), unchanged."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from app.identities.schemas import Identity, IdentityFormat, IdentityType
from app.jobs.schemas import plausible_time
from app.kit.text import Text

API_VERSION = "2.0"
UUID_V4 = r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
MAX_CALLBACKS = 10
RequestStatus = Literal["pending", "in_progress", "completed", "cancelled"]


class SubjectIdentity(Identity):
    """An identity in a request, which always says its format."""

    identity_format: IdentityFormat = Field(...)


class SubjectRequest(BaseModel):
    """A request of a data subject, as the controller sends it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    regulation: Literal["gdpr", "ccpa"]
    subject_request_id: Annotated[str, Field(pattern=UUID_V4, description="UUID v4, made by the controller.")]
    subject_request_type: Annotated[
        Literal["access", "portability", "erasure"], Field(description="Only erasure is carried out.")
    ]
    submitted_time: Annotated[
        AwareDatetime, Field(description="When the person asked."), AfterValidator(plausible_time)
    ]
    subject_identities: Annotated[list[SubjectIdentity], Field(min_length=1, max_length=100)]
    api_version: Annotated[str, Field(pattern=r"^2\.[0-9]{1,3}$")] = API_VERSION
    status_callback_urls: Annotated[
        list[Annotated[Text, Field(min_length=1, max_length=2048)]], Field(max_length=MAX_CALLBACKS)
    ] = []
    extensions: Annotated[
        dict[str, Any] | None, Field(description="By processor domain; those of others are passed over.")
    ] = None


class SupportedIdentity(BaseModel):
    """A kind of identity by which records are found."""

    identity_type: IdentityType
    identity_format: IdentityFormat


class Discovery(BaseModel):
    """What this processor can do."""

    api_version: str
    supported_identities: list[SupportedIdentity]
    supported_subject_request_types: list[str]
    processor_certificate: str


class Accepted(BaseModel):
    """The receipt of a request."""

    controller_id: str
    expected_completion_time: datetime
    received_time: datetime
    encoded_request: Annotated[str, Field(description="Base64 of the body that was sent. Do not log or store it.")]
    subject_request_id: str


class JobState(BaseModel):
    """An unlearn job that works on a request."""

    id: str
    adapter: str
    status: str


class ProcessorExtension(BaseModel):
    """What Lethe says beyond the specification."""

    jobs: list[JobState]


class StatusRead(BaseModel):
    """Where a request stands."""

    controller_id: str
    expected_completion_time: datetime
    subject_request_id: str
    request_status: RequestStatus
    api_version: str
    results_url: None = None
    results_count: Annotated[int, Field(description="Records found about the person; 0 when there was nothing.")]
    extensions: Annotated[dict[str, ProcessorExtension], Field(description="By this processor's domain.")]


class StatusCallback(StatusRead):
    """What callbacks are sent when the status of a request has changed."""

    status_callback_url: Annotated[str, Field(description="As it stood in the request; check that it is yours.")]


class Cancelled(BaseModel):
    """The receipt of a cancellation."""

    controller_id: str
    subject_request_id: str
    received_time: datetime
    api_version: str


class SpecErrorItem(BaseModel):
    """One thing wrong."""

    domain: str
    reason: str
    message: str


class SpecError(BaseModel):
    """The specification's error object; it stands in a problem document as its member `error`."""

    code: int
    message: str
    errors: list[SpecErrorItem]
