"""``/audit``."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from app.audit import service
from app.audit.actions import Action
from app.audit.record import document
from app.audit.repository import AuditRepository
from app.audit.schemas import AuditEntryRead, VerificationRead
from app.auth.guard import GuardedRoute
from app.dependencies import SessionDep, TenantDep, requires
from app.kit.pagination import Cursor, Limit, Page
from app.kit.problems import invalid_field, responses

router = APIRouter(prefix="/audit", tags=["audit"], route_class=GuardedRoute)
_READ = responses(HTTPStatus.UNAUTHORIZED)


@router.get("", dependencies=[requires("audit:read")], operation_id="list_audit_entries", responses=_READ)
async def list_all(
    session: SessionDep,
    tenant: TenantDep,
    action: Annotated[Action | None, Query()] = None,
    subject: Annotated[str | None, Query(max_length=128, description="Id of what the entries are about.")] = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Page[AuditEntryRead]:
    """Entries of the audit chain, newest first."""
    rows, more = await AuditRepository(session, tenant).page(limit, _before(cursor), action, subject)
    following = str(rows[-1].sequence) if more else None
    data = [AuditEntryRead.model_validate(document(row)) for row in rows]
    return Page(data=data, has_more=more, next_cursor=following)


@router.get("/verify", dependencies=[requires("audit:read")], operation_id="verify_audit_chain", responses=_READ)
async def verify(
    session: SessionDep,
    tenant: TenantDep,
    known: Annotated[
        str | None,
        Query(
            pattern=r"^[0-9]{1,15}:[0-9a-f]{64}$",
            description="`SEQUENCE:HASH` of an entry as it was noted elsewhere, such as in an attestation.",
        ),
    ] = None,
) -> VerificationRead:
    """Check the whole chain: no entry edited, removed, put in or moved since it was written."""
    sequence, _, noted = (known or "").partition(":")
    return await service.verify(AuditRepository(session, tenant), {int(sequence): noted} if known else {})


@router.get(
    "/export",
    dependencies=[requires("audit:read")],
    operation_id="export_audit_chain",
    response_class=StreamingResponse,
    responses={
        200: {
            "description": "JSON Lines: the entries, oldest first, and the head",
            "content": {"application/jsonl": {"schema": {"type": "string"}}},
        },
        **_READ,
    },
)
async def export(request: Request, tenant: TenantDep) -> StreamingResponse:
    """The whole chain as a file that anybody can verify (docs/audit.md)."""
    lines = service.export(request.app.state.sessions, tenant)
    headers = {"Content-Disposition": 'attachment; filename="audit.jsonl"'}
    return StreamingResponse(lines, media_type="application/jsonl", headers=headers)


def _before(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise invalid_field("/query/cursor", "not a cursor of this list; leave it out to start over")
    return int(cursor)
