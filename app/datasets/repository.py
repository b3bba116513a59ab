"""Queries on datasets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import Select, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters.tables import Adapter
from app.audit.record import append
from app.base_models.tables import BaseModelRow
from app.datasets import purging
from app.datasets.tables import Dataset
from app.identities.purging import keeps
from app.identities.tables import IdentityIndex
from app.jobs.tables import UnlearnJob
from app.kit.db import on_rollback
from app.kit.pagination import newest_first, split_page


class DatasetRepository:
    """Datasets of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    # Built when it is asked for: a job is accepted without it.
    @property
    def _mine(self) -> Select[Dataset]:
        return select(Dataset).where(Dataset.tenant_id == self._tenant_id)

    async def by_id(self, dataset_id: str, *, lock: bool = False) -> Dataset | None:
        """The dataset with that id; `lock` keeps others from purging it until the transaction ends."""
        statement = self._mine.where(Dataset.id == dataset_id)
        return await self._session.scalar(statement.with_for_update() if lock else statement)

    async def page(self, limit: int, cursor: str | None) -> tuple[list[Dataset], bool]:
        """One page, newest first, and whether more follow."""
        statement = newest_first(self._mine, Dataset.created_at, Dataset.id, limit, cursor)
        return split_page((await self._session.scalars(statement)).all(), limit)

    async def needed_by(self, dataset_id: str) -> str | None:
        """A job that has not ended and needs the dataset."""
        needs = purging.needs(dataset_id)
        return await self._session.scalar(
            select(UnlearnJob.id).where(UnlearnJob.tenant_id == self._tenant_id, needs).limit(1)
        )

    async def default_of(self, dataset_id: str) -> str | None:
        """The name of an adapter that keeps the dataset as its default retain set."""
        mine = select(Adapter.name).where(Adapter.tenant_id == self._tenant_id, purging.is_default(dataset_id))
        return await self._session.scalar(mine.limit(1))

    async def training_of(self, dataset_id: str) -> str | None:
        """The name of an adapter that holds the dataset as its training set."""
        mine = select(Adapter.name).where(Adapter.tenant_id == self._tenant_id, purging.trains(dataset_id))
        return await self._session.scalar(mine.limit(1))

    async def kept_by(self, dataset_id: str) -> str | None:
        """The id of an identity index that hands the dataset to its jobs as their retain set."""
        mine = select(IdentityIndex.id).where(IdentityIndex.tenant_id == self._tenant_id, keeps(dataset_id))
        return await self._session.scalar(mine.limit(1))

    async def base_models(self, most: int) -> list[Path]:
        """The directories of the tenant's newest base models."""
        mine = select(BaseModelRow.directory).where(BaseModelRow.tenant_id == self._tenant_id)
        found = await self._session.scalars(mine.order_by(BaseModelRow.created_at.desc()).limit(most))
        return [Path(directory) for directory in found]

    async def add(self, dataset: Dataset, digest: str, undo: Callable[[], None]) -> None:
        """Store a new one, which the audit chain names by `digest`; `undo` is called should the transaction fail."""
        await on_rollback(self._session, undo)
        self._session.add(dataset)
        await self._session.flush()
        await self._session.refresh(dataset)
        data = {"purpose": dataset.purpose, "records": dataset.records, "bytes": dataset.size, "digest": digest}
        append(self._session.sync_session, self._tenant_id, "dataset.created", "dataset", dataset.id, data)

    async def shred(self, dataset: Dataset) -> None:
        """Destroy the data key, and have the blobs removed once that is committed."""
        await self._session.run_sync(purging.shred, dataset.id)
