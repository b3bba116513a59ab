"""Reading whole chains: to verify one, to export one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict
from typing import Any

from anyio import to_thread
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from app.audit.chain import HEAD, Finding, Verifier
from app.audit.record import document
from app.audit.repository import AuditRepository
from app.audit.schemas import FindingRead, HeadRead, VerificationRead
from app.audit.tables import AuditEntry

MAX_FINDINGS = 100


async def verify(repository: AuditRepository, known: dict[int, str]) -> VerificationRead:
    """Check a tenant's chain from its first entry to its head.

    Args:
        known: hashes by sequence number that the caller has noted.
    """
    await repository.freeze()
    verifier = Verifier(known)
    findings: list[Finding] = []
    last = 0
    while entries := await repository.batch(after=last):
        # Hashing takes the processor, and other requests wait for this thread.
        found = await to_thread.run_sync(_check, verifier, entries)
        findings += found[: MAX_FINDINGS + 1 - len(findings)]
        last = entries[-1].sequence
    head = await repository.head()
    findings += verifier.finish(head)
    return VerificationRead(
        holds=not findings,
        entries=verifier.entries,
        head=HeadRead(sequence=head.sequence, hash=head.hash) if head else None,
        findings=[FindingRead(**asdict(finding)) for finding in findings[:MAX_FINDINGS]],
        more_findings=len(findings) > MAX_FINDINGS,
    )


async def export(sessions: async_sessionmaker[AsyncSession], tenant_id: str) -> AsyncIterator[bytes]:
    """A tenant's chain as JSON Lines, oldest first, its head last.

    A session for each part: a slow reader must not hold a connection. What is appended meanwhile is left out.
    """
    async with sessions() as session:
        head = await AuditRepository(session, tenant_id).head()
    end, last = (head.sequence if head else 0), 0
    while last < end:
        async with sessions() as session:
            batch = await AuditRepository(session, tenant_id).batch(after=last)
        entries = [entry for entry in batch if entry.sequence <= end]
        if not entries:
            break
        yield b"".join(_line(document(entry)) for entry in entries)
        last = entries[-1].sequence
    if head:
        yield _line({"object": HEAD, "tenant": tenant_id, "sequence": head.sequence, "hash": head.hash})


def _check(verifier: Verifier, entries: Iterable[AuditEntry]) -> list[Finding]:
    return [finding for entry in entries for finding in verifier.check(document(entry))]


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
