"""Uploading, finding and purging datasets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import cast

from anyio import to_thread
from sqlalchemy import func

from app.datasets.body import Reader
from app.datasets.fingerprints import overlap
from app.datasets.intake import Intake, Limits, Stored, salt_of, salted_digest
from app.datasets.records import Record, to_line
from app.datasets.remainder import Remainder
from app.datasets.repository import DatasetRepository
from app.datasets.schemas import DatasetRead, Purpose
from app.datasets.statistics import count_ahead
from app.datasets.tables import Dataset
from app.datasets.tokenizer_files import LOADED
from app.datasets.vault import Vault
from app.kit.memory_storage import MemoryStorage
from app.kit.problems import Conflict, NotFound, invalid_field
from app.kit.storage import Storage
from app.settings import Settings


class DatasetService:
    """Datasets of one tenant."""

    def __init__(self, repository: DatasetRepository, storage: Storage, settings: Settings, tenant_id: str) -> None:
        self._repository = repository
        self._storage = storage
        self._settings = settings
        self._tenant_id = tenant_id
        self.vault = Vault(storage, settings.key_ring)

    async def upload(
        self, purpose: Purpose, body: AsyncIterator[bytes], reader: Reader, purge_at: datetime | None = None
    ) -> Dataset:
        """Store what arrives as a new dataset.

        Args:
            reader: makes the stage that turns the body into JSON Lines and hands them on.
            purge_at: when to purge it, if not when the retention of its purpose ends.

        Raises:
            Invalid: a line is no record, or there is none; `purge_at` is past, or later than the retention's end.
            TooLarge: a limit is exceeded.
        """
        self._check_purge_at(purpose, purge_at)
        intake = self._intake()
        stage = reader(intake.feed)
        with intake:
            async for data in body:
                await to_thread.run_sync(stage.write, data)
            await to_thread.run_sync(stage.close)
            stored = await to_thread.run_sync(intake.finish)
            dataset = self._dataset(purpose, stored, purge_at)
            directories = await self._repository.base_models(LOADED)
            dataset.token_counts = await to_thread.run_sync(count_ahead, self.vault, dataset, directories)
        return await self._register(dataset)

    async def store_records(self, purpose: Purpose, records: Sequence[Record]) -> Dataset:
        """Store records that came inside a request."""
        return await self._register(self._dataset(purpose, await self._take_in(records, self._intake())))

    async def hold_records(self, purpose: Purpose, records: Sequence[Record]) -> tuple[Dataset, Vault]:
        """The same, in memory alone: a dataset that nobody else will ever see, and the vault that opens it."""
        storage = MemoryStorage()
        stored = await self._take_in(records, self._intake(storage))
        return self._dataset(purpose, stored), Vault(storage, self._settings.key_ring)

    async def store_without(self, dataset: Dataset, other: Dataset) -> Dataset:
        """A copy of a dataset without the records that a smaller one holds; itself where they share none.

        Raises:
            Invalid: the other one holds all of its records.
        """
        if not (
            await to_thread.run_sync(lambda: overlap(self.vault.index(dataset), self.vault.index(other)))
        ).records:
            return dataset
        stored = await to_thread.run_sync(self._copy_without, dataset, other)
        return await self._register(self._dataset(cast(Purpose, dataset.purpose), stored))

    def _copy_without(self, dataset: Dataset, other: Dataset) -> Stored:
        with self._intake() as intake:
            for line in Remainder(self.vault, dataset, other, self._salt()).lines():
                intake.feed(line + b"\n")
            return intake.finish()

    async def get(self, dataset_id: str) -> Dataset:
        """The dataset with that id. Raises NotFound."""
        dataset = await self._repository.by_id(dataset_id)
        if dataset is None:
            raise NotFound("there is no dataset with this id; GET /datasets lists them")
        return dataset

    async def purge(self, dataset_id: str) -> None:
        """Destroy the data key now; the light worker removes the blobs. Repeating it does no harm.

        Raises:
            NotFound: no such dataset.
            Conflict: a job that has not ended needs it.
        """
        await self.get(dataset_id)
        dataset = await self._repository.by_id(dataset_id, lock=True)
        if dataset is None or dataset.purged_at is not None:
            return
        job_id = await self._repository.needed_by(dataset_id)
        if job_id is not None:
            raise Conflict(f"job {job_id} needs this dataset; cancel it or wait for its end")
        adapter = await self._repository.default_of(dataset_id)
        if adapter is not None:
            raise Conflict(f"it is the default retain set of adapter {adapter!r}")
        adapter = await self._repository.training_of(dataset_id)
        if adapter is not None:
            raise Conflict(
                f"it is the training set of adapter {adapter!r}; DELETE /adapters/{adapter}/training-set destroys it"
            )
        index_id = await self._repository.kept_by(dataset_id)
        if index_id is not None:
            raise Conflict(f"it is the retain set of identity index {index_id}; purge that first")
        await self._repository.shred(dataset)

    async def _take_in(self, records: Sequence[Record], intake: Intake) -> Stored:
        def write() -> Stored:
            with intake:
                for record in records:
                    intake.feed(to_line(record))
                return intake.finish()

        return await to_thread.run_sync(write)

    def _intake(self, storage: Storage | None = None) -> Intake:
        limits = Limits(self._settings.max_record_bytes, self._settings.max_records)
        return Intake(storage or self._storage, self._settings.key_ring, self._tenant_id, self._salt(), limits)

    def _salt(self) -> bytes:
        return salt_of(self._tenant_id, self._settings.pepper)

    def _check_purge_at(self, purpose: Purpose, purge_at: datetime | None) -> None:
        if purge_at is None:
            return
        now, days = datetime.now(UTC), self._settings.retention_days(purpose)
        if not now < purge_at <= now + timedelta(days=days):
            raise invalid_field("/query/purge_at", f"must lie within the next {days} days")

    async def _register(self, dataset: Dataset) -> Dataset:
        # Taken now: what rolls back may have found the row's attributes expired.
        keys = dataset.blob_key, dataset.digests_key
        digest = salted_digest(dataset.sha256, self._salt())
        await self._repository.add(dataset, digest, undo=lambda: self._discard(keys))
        return dataset

    def _discard(self, keys: Iterable[str]) -> None:
        for key in keys:
            self._storage.delete(key)

    def _dataset(self, purpose: Purpose, stored: Stored, purge_at: datetime | None = None) -> Dataset:
        usual = func.now() + timedelta(days=self._settings.retention_days(purpose))
        return Dataset.of(stored, self._tenant_id, purpose, purge_at or usual)


def present(dataset: Dataset) -> DatasetRead:
    """The outside view."""
    return DatasetRead(
        id=dataset.id,
        purpose=cast(Purpose, dataset.purpose),
        records=dataset.records,
        duplicates=dataset.duplicates,
        bytes=dataset.size,
        sha256=dataset.sha256,
        created_at=dataset.created_at,
        purge_at=dataset.purge_at,
        purged_at=dataset.purged_at,
    )
