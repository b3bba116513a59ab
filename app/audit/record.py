"""Adding to the audit chain, in the transaction that makes the entry true.

`append` only notes an entry; it is written when the transaction commits. So the head's row, which everybody who
appends for a tenant has to lock, is locked after every other row and for a moment only: no caller can lock in another
order, and no two transactions wait for each other. What is rolled back leaves nothing.

The statement that locks the head also numbers, times, links and hashes the entry, so that others wait for one trip to
the database. What it hashes is what app.audit.chain verifies.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from sqlalchemy import ColumnElement, Select, Table, Text, bindparam, event, func, insert, select, update
from sqlalchemy import cast as sql_cast
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from app.audit.actions import Action, SubjectType
from app.audit.chain import ENTRY, GENESIS, Head, check_data, hashed_text, timestamp
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
    if not (found := _LOCKED.now(session, entry_tenant_id=tenant_id)):
        _begin_chain(session, tenant_id)
        found = _LOCKED.now(session, entry_tenant_id=tenant_id)
    return Head(found[0].sequence, found[0].hash)


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
    for one in sorted(noted, key=lambda one: one.tenant_id):
        _write(session, one)


def _write(session: Session, noted: _Noted) -> None:
    values = {f"entry_{name}": value for name, value in vars(noted).items()}
    values |= dict(zip(("start", "middle", "end"), _around_place(noted), strict=True))
    if not _APPEND.now(session, **values):
        _begin_chain(session, noted.tenant_id)
        _APPEND.now(session, **values)


def _begin_chain(session: Session, tenant_id: str) -> None:
    first = postgresql.insert(AuditHead).values(tenant_id=tenant_id, sequence=0, hash=GENESIS)
    session.execute(first.on_conflict_do_nothing())


def _around_place(noted: _Noted) -> tuple[str, str, str]:
    """What is hashed of an entry, without its time and its number, which come between these three."""
    entry = cast(AuditEntry, SimpleNamespace(**vars(noted), sequence=0, at=_NO_TIME, previous_hash="", hash=""))
    # No word in an entry holds a capital, so the time is found; behind the number there are only subject and tenant.
    start, _, rest = hashed_text(document(entry)).decode().partition(timestamp(_NO_TIME))
    middle, number, end = rest.rpartition('"sequence":0')
    return start, middle + number.removesuffix("0"), end


def _append() -> Prepared:
    head = _head().cte("head")
    # The clock is read once the chain is ours, from the row that was locked: within a chain time goes forward.
    number, at = (head.c.sequence + 1).label("sequence"), func.clock_timestamp().label("at")
    place = select(head.c.tenant_id, number, at, head.c.hash.label("previous_hash")).cte("place")
    entry = select(place, _hash(place.c).label("hash")).cte("entry")
    moved = (
        update(_HEADS)
        .where(_HEADS.c.tenant_id == entry.c.tenant_id)
        .values(sequence=entry.c.sequence, hash=entry.c.hash)
        .returning(_HEADS.c.tenant_id)
        .cte("moved")
    )
    given = {column.name: bindparam(f"entry_{column.name}", type_=column.type) for column in _ENTRIES.columns}
    row = given | {name: entry.c[name] for name in ("tenant_id", "sequence", "at", "previous_hash", "hash")}
    # The tables, since of an entity the session makes an insert of its own.
    added = insert(_ENTRIES).from_select(list(row), select(*row.values()).select_from(entry))
    return Prepared(added.returning(_ENTRIES.c.sequence).add_cte(moved))


def _head() -> Select[str, int, str]:
    mine = AuditHead.tenant_id == bindparam("entry_tenant_id", type_=Text)
    return select(AuditHead.tenant_id, AuditHead.sequence, AuditHead.hash).where(mine).with_for_update()


def _hash(place: ReadOnlyColumnCollection[str, Any]) -> ColumnElement[str]:
    """The hash of the entry at a place, as `entry_hash` of app.audit.chain."""
    start, middle, end = (bindparam(name, type_=Text) for name in ("start", "middle", "end"))
    at = func.to_char(func.timezone("UTC", place["at"]), _TIMESTAMP)
    text = start + at + middle + sql_cast(place["sequence"], Text) + end
    linked = func.decode(place["previous_hash"], "hex").op("||")(func.convert_to(text, "UTF8"))
    return func.encode(func.sha256(linked), "hex", type_=Text)


_ENTRIES, _HEADS = cast(Table, AuditEntry.__table__), cast(Table, AuditHead.__table__)
_NO_TIME = datetime(1, 1, 1, tzinfo=UTC)
_TIMESTAMP = 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'  # as `timestamp` of app.audit.chain
_LOCKED, _APPEND = Prepared(_head()), _append()
