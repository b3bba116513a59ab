"""Queries on identity indexes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from sqlalchemy import Row, Select, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters.tables import Adapter
from app.audit.record import append
from app.identities import purging
from app.identities.intake import Entry
from app.identities.tables import IdentityClaim, IdentityEntry, IdentityIndex
from app.kit.db import on_rollback
from app.kit.pagination import newest_first, split_page

IndexRow = Row[IdentityIndex, str]
MatchRow = Row[IdentityIndex, IdentityEntry, Adapter]


class IdentityIndexRepository:
    """Identity indexes of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def _indexes(self) -> Select[IdentityIndex, str]:
        return (
            select(IdentityIndex, Adapter.name)
            .join(Adapter, Adapter.id == IdentityIndex.adapter_id)
            .where(IdentityIndex.tenant_id == self._tenant_id)
            .execution_options(populate_existing=True)
        )

    async def by_id(self, index_id: str) -> IndexRow | None:
        """An index with its adapter's name."""
        return (await self._session.execute(self._indexes().where(IdentityIndex.id == index_id))).one_or_none()

    async def page(self, limit: int, cursor: str | None) -> tuple[list[IndexRow], bool]:
        """One page, newest first, and whether more follow."""
        statement = newest_first(self._indexes(), IdentityIndex.created_at, IdentityIndex.id, limit, cursor)
        return split_page((await self._session.execute(statement)).all(), limit)

    async def add(self, index: IdentityIndex, batches: Iterable[list[Entry]], undo: Callable[[], None]) -> None:
        """Store a new index with its entries; `undo` is called should the transaction fail."""
        await on_rollback(self._session, undo)
        self._session.add(index)
        await self._session.flush()
        for batch in batches:
            common = {"index_id": index.id, "tenant_id": self._tenant_id}
            await self._session.execute(insert(IdentityEntry), [asdict(entry) | common for entry in batch])
        data = {
            "adapter": index.adapter_id,
            "retain_set": index.retain_set_id,
            "entries": index.entries,
            "records": index.records,
            "bytes": index.size,
        }
        append(
            self._session.sync_session, self._tenant_id, "identity_index.created", "identity_index", index.id, data
        )

    async def matching(self, fingerprints: Iterable[bytes]) -> Sequence[MatchRow]:
        """The entries that carry one of these, the newest index first, kept from being destroyed until the end."""
        statement = (
            select(IdentityIndex, IdentityEntry, Adapter)
            .join(IdentityEntry, IdentityEntry.index_id == IdentityIndex.id)
            .join(Adapter, Adapter.id == IdentityIndex.adapter_id)
            .where(
                IdentityEntry.tenant_id == self._tenant_id,
                IdentityEntry.fingerprints.overlap(sorted(fingerprints)),
                IdentityIndex.purged_at.is_(None),
            )
            .order_by(IdentityIndex.created_at.desc(), IdentityIndex.id, IdentityEntry.number)
            .with_for_update(key_share=True, read=True, of=IdentityEntry)
        )
        return (await self._session.execute(statement)).all()

    async def claim(self, job_id: str, entries: Iterable[IdentityEntry]) -> None:
        """Note that a job unlearns these, so that its success destroys them."""
        common = {"job_id": job_id, "tenant_id": self._tenant_id}
        rows = [{"index_id": entry.index_id, "number": entry.number} | common for entry in entries]
        await self._session.execute(insert(IdentityClaim), rows)

    async def shred(self, index_id: str) -> None:
        """Destroy an index, and have its blob removed once that is committed."""
        await self._session.run_sync(purging.shred_index, index_id)
