"""Wraps every secret anew under the current key-encryption key, so that the others can be dropped.

No blob is touched. Safe beside everything else: rows are locked batch by batch, a secret that is destroyed meanwhile
stays destroyed, and whoever holds an old copy of a row opens it as long as the old key is in its ring. What broke off
is begun again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from sqlalchemy import Engine, Row, Select, func, select, update
from sqlalchemy.orm import Session

from app.audit.chain import check_data
from app.audit.record import append
from app.data_keys.columns import WrappedColumn, wrapped_columns
from app.kit.crypto import CryptoError, KeyRing, WrappedKey
from app.tables import metadata

BATCH = 200


@dataclass
class Report:
    """What was found in one column, and done.

    Attributes:
        by_key: secrets by the id of the key under which they were found.
        rewrapped: secrets that are under the current key now and were not.
        unreadable: secrets that no key of the ring opens.
    """

    column: str
    by_key: dict[str, int]
    rewrapped: int = 0
    unreadable: int = 0


@dataclass
class _Batch:
    """Of one transaction: by tenant, how many secrets came from which key."""

    last: Any = None
    unreadable: int = 0
    moved: dict[str, Counter[str]] = field(default_factory=dict)


def rewrap(engine: Engine, ring: KeyRing, *, dry_run: bool = False) -> list[Report]:
    """Bring every wrapped secret under the current key; one report per column.

    Args:
        dry_run: count only.
    """
    reports = []
    for column in wrapped_columns(metadata):
        report = Report(f"{column.table.name}.{column.wrapped.name}", _by_key(engine, column))
        if not dry_run:
            _rewrap_column(engine, ring, column, report)
        reports.append(report)
    return reports


def _by_key(engine: Engine, column: WrappedColumn) -> dict[str, int]:
    counted = select(column.key_id, func.count()).where(column.wrapped.is_not(None)).group_by(column.key_id)
    with engine.connect() as connection:
        return {row[0]: row[1] for row in connection.execute(counted.order_by(column.key_id))}


def _rewrap_column(engine: Engine, ring: KeyRing, column: WrappedColumn, report: Report) -> None:
    last = None
    while True:
        with Session(engine) as session, session.begin():
            batch = _rewrap_batch(session, ring, column, last)
        report.unreadable += batch.unreadable
        report.rewrapped += sum(counter.total() for counter in batch.moved.values())
        if batch.last is None:
            return
        last = batch.last


def _rewrap_batch(session: Session, ring: KeyRing, column: WrappedColumn, last: object) -> _Batch:
    batch = _Batch()
    for row in session.execute(_next(column, ring.current, last)):
        batch.last = row._mapping[column.primary_key.name]
        tenant_id, old = row._mapping[column.tenant_id.name], row._mapping[column.key_id.name]
        if _rewrap_row(session, ring, column, row):
            batch.moved.setdefault(tenant_id, Counter())[old] += 1
        else:
            batch.unreadable += 1
    for tenant_id, counter in batch.moved.items():
        data = {"table": column.table.name, "from": {key_name(old): count for old, count in counter.items()}}
        append(session, tenant_id, "data_keys.rewrapped", "encryption_key", key_name(ring.current), data)
    return batch


def _next(column: WrappedColumn, current: str, last: object) -> Select[Any]:
    """The next rows under another key, locked, whole because their context may need any field."""
    statement = select(column.table).where(column.wrapped.is_not(None), column.key_id != current)
    if last is not None:
        statement = statement.where(column.primary_key > last)
    return statement.order_by(column.primary_key).limit(BATCH).with_for_update()


def _rewrap_row(session: Session, ring: KeyRing, column: WrappedColumn, row: Row[Any]) -> bool:
    """Whether the row's secret could be opened, and is wrapped anew."""
    values = row._mapping
    context = column.context(values)
    try:
        secret = ring.unwrap(WrappedKey(values[column.key_id.name], values[column.wrapped.name]), context)
    except CryptoError:
        return False
    anew = ring.wrap(secret, context)
    changed = update(column.table).where(column.primary_key == values[column.primary_key.name])
    session.execute(changed.values({column.key_id.name: anew.key_id, column.wrapped.name: anew.ciphertext}))
    return True


def key_name(key_id: str) -> str:
    """A key's id as the audit chain can hold it: an id that somebody wrote in another way is named by its digest."""
    try:
        check_data(key_id)
    except ValueError:
        return f"sha256:{sha256(key_id.encode()).hexdigest()}"
    return key_id
