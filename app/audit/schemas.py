"""What the audit chain looks like from outside."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from app.audit.chain import Kind


class Subject(BaseModel):
    """What an entry is about."""

    type: str
    id: str


class AuditEntryRead(BaseModel):
    """One entry, field by field as it is hashed (docs/audit.md)."""

    object: Literal["audit_entry"] = "audit_entry"
    tenant: str
    sequence: int
    # A text and no datetime, since the hash is over this very text.
    at: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    action: Annotated[str, Field(description="One of docs/audit.md.")]
    subject: Subject
    actor: Annotated[str, Field(description='Id of an API key, "worker" or "system".')]
    data: Annotated[dict[str, Any], Field(description="Ids, digests, counts and words of the service alone.")]
    previous_hash: str
    hash: str


class HeadRead(BaseModel):
    """The newest entry's number and hash."""

    sequence: int
    hash: str


class FindingRead(BaseModel):
    """Something wrong with the chain."""

    sequence: Annotated[int, Field(description="The entry that is concerned, or missing.")]
    kind: Kind
    detail: str


class VerificationRead(BaseModel):
    """Whether the chain holds."""

    object: Literal["audit_verification"] = "audit_verification"
    holds: bool
    entries: Annotated[int, Field(description="Entries that were read.")]
    head: Annotated[HeadRead | None, Field(description="Null when there never was an entry.")]
    findings: Annotated[list[FindingRead], Field(description="The first ones, by place.")]
    more_findings: Annotated[bool, Field(description="Whether there are more than are listed.")]
