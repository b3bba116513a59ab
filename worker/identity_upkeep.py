"""What the light worker does for identity indexes: purge what is due, remove the bytes of what was purged."""

from __future__ import annotations

import structlog
from sqlalchemy import func, select

from app.identities import purging
from app.identities.tables import IdentityIndex
from worker.database import new_session, storage

BATCH = 100
log = structlog.get_logger(__name__)


def purge_due() -> int:
    """Destroy the indexes whose time is up. Answers how many."""
    due = select(IdentityIndex.id).where(IdentityIndex.purge_at < func.now(), IdentityIndex.purged_at.is_(None))
    with new_session() as session, session.begin():
        indexes = session.scalars(due.limit(BATCH).with_for_update(skip_locked=True)).all()
        for index_id in indexes:
            purging.shred_index(session, index_id)
        return len(indexes)


def delete_blob(index_id: str) -> None:
    """Remove the bytes of an index whose key is gone."""
    with new_session() as session:
        index = session.get(IdentityIndex, index_id)
    if index is not None and index.purged_at is not None:
        storage().delete(index.blob_key)
        log.info("identity index purged", index=index_id)
