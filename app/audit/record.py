"""Adding to the audit chain, in the transaction that makes the entry true.

`append` only notes an entry; it is written when the transaction commits. So the head's row, which everybody who
appends for a tenant has to lock, is locked after every other row and for a moment only: no caller can lock in another
order, and no two transactions wait for each other. What is rolled back leaves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, cast

from sqlalchemy import Table, bindparam, event, func, insert, select, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session, SessionTransaction

from app.audit.actions import Action, SubjectType
from app.audit.chain import ENTRY, GENESIS, Head, check_data, entry_hash, timestamp
from app.audit.tables import AuditEntry, AuditHead
from app.kit.driver import Prepared

# Whoever opens a session may say for whom: `session.info[ACTOR]`, an API key's id or "worker".
ACTOR = "audit_actor"
SYSTEM, WORKER = "system", "worker"
_NOTED = "audit_noted"


@dataclass(frozen=True)
class _Noted:
    tenant_id: str
    action: Action
    subject_type: SubjectType
    subject_id: str
    actor: str
    data: dict[str, Any]


def append(
    session: Session,
    tenant_id: str,
    action: Action,
    subject_type: SubjectType,
    subject_id: str,
    data: dict[str, Any] | None = None,
    *,
    actor: str | None = None,
) -> None:
    """Have an entry added to a tenant's chain when the session's transaction commits.

    Does no input or output, so that the web side may call it on `AsyncSession.sync_session` as it is.

    Args:
        data: ids, digests, counts and words of our own.
        actor: id of an API key, "worker" or "system"; the session's (`session.info[ACTOR]`) when left out.

    Raises:
        ValueError: the entry would hold something else than ids, digests, counts and words of our own.
        RuntimeError: a savepoint is open, whose rollback could not take the entry back.
    """
    if session.in_nested_transaction():
        raise RuntimeError("audit entries cannot be added inside of a savepoint")
    noted = _Noted(tenant_id, action, subject_type, subject_id, actor or session.info.get(ACTOR, SYSTEM), data or {})
    for value in (tenant_id, action, subject_type, subject_id, noted.actor, noted.data):
        check_data(value)
    if not session.in_transaction():
        # What is noted belongs to a transaction from now on, and goes when that is rolled back.
        session.begin()
    session.info.setdefault(_NOTED, []).append(noted)


def head(session: Session, tenant_id: str) -> Head:
    """The newest entry of a tenant's chain, this transaction's own included; sequence 0 when there is none.

    Writes what was noted and holds the chain until the transaction ends: nobody else appends for the tenant
    meanwhile. Call it once everything else that the transaction changes is changed.
    """
    _write_noted(session)
    return _locked_head(session, tenant_id)[0]


def document(entry: AuditEntry) -> dict[str, Any]:
    """An entry as JSON, as it is hashed and shown."""
    return {
        "object": ENTRY,
        "tenant": entry.tenant_id,
        "sequence": entry.sequence,
        "at": timestamp(entry.at),
        "action": entry.action,
        "subject": {"type": entry.subject_type, "id": entry.subject_id},
        "actor": entry.actor,
        "data": entry.data,
        "previous_hash": entry.previous_hash,
        "hash": entry.hash,
    }


@event.listens_for(Session, "before_commit")
def _on_commit(session: Session) -> None:
    # A savepoint that is released counts as a commit here.
    if not session.in_nested_transaction():
        _write_noted(session)


@event.listens_for(Session, "after_transaction_end")
def _on_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_NOTED, None)


def _write_noted(session: Session) -> None:
    noted: list[_Noted] = session.info.pop(_NOTED, [])
    if not noted:
        return
    # Whatever is still to be written locks its rows before the head is locked.
    session.flush()
    # By tenant in one order, for the same reason; within a tenant the order stays.
    noted.sort(key=lambda one: one.tenant_id)
    for tenant_id, group in groupby(noted, key=lambda one: one.tenant_id):
        _write(session, tenant_id, group)


def _write(session: Session, tenant_id: str, noted: Iterable[_Noted]) -> None:
    last, at = _locked_head(session, tenant_id)
    for one in noted:
        entry = AuditEntry(**vars(one), sequence=last.sequence + 1, at=at, previous_hash=last.hash)
        entry.hash = entry_hash(document(entry))
        _APPEND.now(session, **{f"entry_{name}": getattr(entry, name) for name in _COLUMNS})
        last = Head(entry.sequence, entry.hash)


def _locked_head(session: Session, tenant_id: str) -> tuple[Head, datetime]:
    """The newest entry, which stays the newest until the transaction ends, and the database's time."""
    found = _LOCKED.now(session, tenant_id=tenant_id)
    if not found:
        first = postgresql.insert(AuditHead).values(tenant_id=tenant_id, sequence=0, hash=GENESIS)
        session.execute(first.on_conflict_do_nothing())
        found = _LOCKED.now(session, tenant_id=tenant_id)
    return Head(found[0].sequence, found[0].hash), found[0].at


def _locked() -> Prepared:
    columns = select(AuditHead.sequence, AuditHead.hash).where(AuditHead.tenant_id == bindparam("tenant_id"))
    head = columns.with_for_update().cte("head")
    # The clock is read once the chain is ours, from the rows that were locked: within a chain time goes forward.
    return Prepared(select(head.c.sequence, head.c.hash, func.clock_timestamp().label("at")))


def _append() -> Prepared:
    moved = (
        update(AuditHead)
        .where(AuditHead.tenant_id == bindparam("entry_tenant_id"))
        .values(sequence=bindparam("entry_sequence"), hash=bindparam("entry_hash"))
        .returning(AuditHead.tenant_id)
        .cte("moved")
    )
    # The table, since of an entity the session makes an insert of its own.
    added = insert(_ENTRIES).values({name: bindparam(f"entry_{name}") for name in _COLUMNS})
    return Prepared(added.returning(_ENTRIES.c.sequence).add_cte(moved))


_ENTRIES = cast(Table, AuditEntry.__table__)
_COLUMNS = [column.name for column in _ENTRIES.columns]
_LOCKED, _APPEND = _locked(), _append()
