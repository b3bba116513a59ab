"""How entries and whole indexes are destroyed. Shared by the web side and the workers.

Whoever locks takes an index before its entries, so that no two transactions wait for each other.
"""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import ColumnElement, and_, delete, func, select, tuple_, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from app import outbox
from app.audit.record import append
from app.identities.tables import IdentityClaim, IdentityEntry, IdentityIndex
from app.jobs.tables import UnlearnJob


def keeps(dataset_id: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """The condition that an index hands the dataset to its jobs as their retain set."""
    return and_(IdentityIndex.retain_set_id == dataset_id, IdentityIndex.purged_at.is_(None))


def shred_index(session: Session, index_id: str) -> None:
    """Destroy an index's data key and its entries.

    The audit chain gets a receipt, and the light worker removes the blob, both once this is committed.
    """
    shredded = session.execute(
        update(IdentityIndex)
        .where(IdentityIndex.id == index_id, IdentityIndex.purged_at.is_(None))
        .values(wrapped_key=None, purged_at=func.now(), remaining=0)
        .returning(IdentityIndex.tenant_id, IdentityIndex.entries, IdentityIndex.records, IdentityIndex.size)
    ).one_or_none()
    session.execute(outbox.delete_index_blob(index_id))
    if shredded is not None:
        session.execute(delete(IdentityEntry).where(IdentityEntry.index_id == index_id))
        tenant_id, entries, records, size = shredded
        receipt = {"entries": entries, "records": records, "bytes": size}
        append(session, tenant_id, "identity_index.purged", "identity_index", index_id, receipt)


def shred_claimed(session: Session, run_id: str) -> None:
    """Destroy the entries whose records the jobs of a run have unlearned: what was erased is found no more."""
    claimed = (
        select(IdentityClaim.index_id, IdentityClaim.number)
        .join(UnlearnJob, UnlearnJob.id == IdentityClaim.job_id)
        .where(UnlearnJob.run_id == run_id)
    )
    of_claims = IdentityIndex.id.in_(select(claimed.subquery().c.index_id))
    session.execute(select(IdentityIndex.id).where(of_claims).order_by(IdentityIndex.id).with_for_update())
    destroyed = session.execute(
        delete(IdentityEntry)
        .where(tuple_(IdentityEntry.index_id, IdentityEntry.number).in_(claimed))
        .returning(IdentityEntry.index_id, IdentityEntry.tenant_id, IdentityEntry.records)
    )
    receipts: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index_id, tenant_id, records in destroyed:
        receipts[index_id, tenant_id].append(records)
    for (index_id, tenant_id), counts in sorted(receipts.items()):
        fewer = IdentityIndex.remaining - len(counts)
        session.execute(update(IdentityIndex).where(IdentityIndex.id == index_id).values(remaining=fewer))
        receipt = {"run": run_id, "entries": len(counts), "records": sum(counts)}
        append(session, tenant_id, "identity_index.entries_purged", "identity_index", index_id, receipt)
