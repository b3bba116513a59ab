"""Uploading, purging and asking identity indexes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta

from anyio import to_thread
from sqlalchemy import func

from app.adapters.repository import AdapterRepository
from app.adapters.tables import Adapter
from app.datasets.body import Reader
from app.datasets.intake import Limits, salt_of
from app.datasets.records import Record, digest, parse_record
from app.datasets.repository import DatasetRepository
from app.identities.contexts import context
from app.identities.fingerprints import fingerprints, secret_of
from app.identities.intake import IndexIntake, StoredIndex
from app.identities.repository import IdentityIndexRepository, IndexRow
from app.identities.schemas import Identity, IdentityIndexRead
from app.identities.tables import IdentityEntry, IdentityIndex
from app.kit.crypto import CryptoError, WrappedKey, unseal
from app.kit.problems import NotFound, invalid_field
from app.kit.storage import Storage
from app.settings import Settings

_BATCH = 1000
_PIECE = 1024**2


@dataclass
class Found:
    """What one adapter was trained on about a person, and what its jobs have to keep."""

    adapter: str
    retain_set: str | None
    records: dict[bytes, Record] = field(default_factory=dict)  # by digest, so that none counts twice
    entries: list[IdentityEntry] = field(default_factory=list)


class IdentityIndexService:
    """Identity indexes of one tenant."""

    def __init__(
        self,
        indexes: IdentityIndexRepository,
        adapters: AdapterRepository,
        datasets: DatasetRepository,
        storage: Storage,
        settings: Settings,
        tenant_id: str,
    ) -> None:
        self._indexes = indexes
        self._adapters = adapters
        self._datasets = datasets
        self._storage = storage
        self._settings = settings
        self._tenant_id = tenant_id

    async def upload(self, adapter: str, retain_set: str | None, body: AsyncIterator[bytes], reader: Reader) -> str:
        """Store what arrives as a new index. Answers its id.

        Args:
            reader: makes the stage that turns the body into JSON Lines and hands them on.

        Raises:
            Invalid: a line is none, there is none, or adapter or retain set is not there.
            TooLarge: a limit is exceeded.
        """
        limits = Limits(self._settings.max_record_bytes, self._settings.max_records)
        secret = secret_of(self._tenant_id, self._settings.pepper)
        with IndexIntake(self._storage, self._settings.key_ring, self._tenant_id, secret, limits) as intake:
            stage = reader(intake.feed)
            async for data in body:
                await to_thread.run_sync(stage.write, data)
            await to_thread.run_sync(stage.close)
            # Only now: a question to the database holds a connection until the request ends.
            target = await self._target(adapter, retain_set)
            stored = await to_thread.run_sync(intake.finish)
            index = self._row(stored, target, retain_set)
            undo = stored.blob_key
            await self._indexes.add(index, intake.batches(_BATCH), undo=lambda: self._storage.delete(undo))
        return stored.index_id

    async def get(self, index_id: str) -> IndexRow:
        """The index with that id. Raises NotFound."""
        row = await self._indexes.by_id(index_id)
        if row is None:
            raise NotFound("there is no identity index with this id; GET /identity-indexes lists them")
        return row

    async def purge(self, index_id: str) -> None:
        """Destroy an index now. Repeating it does no harm. Raises NotFound."""
        index, _ = await self.get(index_id)
        if index.purged_at is None:
            await self._indexes.shred(index_id)

    async def find(self, identities: Iterable[Identity]) -> list[Found]:
        """What the indexes hold about whoever has one of these identities, by adapter. Decrypts only that."""
        secret = secret_of(self._tenant_id, self._settings.pepper)
        wanted: set[bytes] = set().union(*(fingerprints(identity, secret) for identity in identities))
        found: dict[str, Found] = {}
        for index, entry, adapter in await self._indexes.matching(wanted):
            # The newest index of an adapter says what its jobs keep.
            retain_set = index.retain_set_id or adapter.default_retain_set_id
            one = found.setdefault(adapter.name, Found(adapter.name, retain_set))
            one.entries.append(entry)
            one.records |= await to_thread.run_sync(self._open, index, entry)
        return list(found.values())

    async def claim(self, job_id: str, entries: Sequence[IdentityEntry]) -> None:
        """Have these entries destroyed when the job succeeds."""
        await self._indexes.claim(job_id, entries)

    def _open(self, index: IdentityIndex, entry: IdentityEntry) -> dict[bytes, Record]:
        if index.wrapped_key is None:
            raise CryptoError("the index was purged")
        wrapped = WrappedKey(index.key_id, index.wrapped_key)
        data_key = self._settings.key_ring.unwrap(wrapped, context(self._tenant_id, index.id, "key"))
        place = context(self._tenant_id, index.id, f"entry/{entry.number}")
        with closing(self._storage.open_range(index.blob_key, entry.offset, entry.size)) as blob:
            sealed = b"".join(iter(lambda: blob.read(_PIECE), b""))
        plain = unseal(unseal(data_key, entry.sealed_key, f"{place}/key"), sealed, place)
        salt = salt_of(self._tenant_id, self._settings.pepper)
        records = [parse_record(line) for line in plain.split(b"\n") if line]
        return {digest(record, salt): record for record in records}

    async def _target(self, name: str, retain_set: str | None) -> Adapter:
        adapter = await self._adapters.by_name(name)
        if adapter is None:
            raise invalid_field("/query/adapter", "no adapter of this name is registered; GET /adapters lists them")
        if retain_set is None:
            if adapter.default_retain_set_id is None:
                raise invalid_field("/query/retain_set", "is needed, since the adapter has no default retain set")
            return adapter
        # Locked until the index is stored, so that nobody purges the dataset in between.
        dataset = await self._datasets.by_id(retain_set, lock=True)
        if dataset is None or dataset.purpose != "retain" or dataset.purged_at is not None:
            raise invalid_field(
                "/query/retain_set", "no retain set with this id; POST /datasets?purpose=retain first"
            )
        return adapter

    def _row(self, stored: StoredIndex, adapter: Adapter, retain_set: str | None) -> IdentityIndex:
        return IdentityIndex(
            id=stored.index_id,
            tenant_id=self._tenant_id,
            adapter_id=adapter.id,
            retain_set_id=retain_set,
            entries=stored.entries,
            remaining=stored.entries,
            records=stored.records,
            size=stored.bytes,
            blob_key=stored.blob_key,
            key_id=stored.wrapped.key_id,
            wrapped_key=stored.wrapped.ciphertext,
            purge_at=func.now() + timedelta(days=self._settings.identity_index_retention_days),
        )


def present(row: IndexRow) -> IdentityIndexRead:
    """The outside view."""
    index, adapter = row
    return IdentityIndexRead(
        id=index.id,
        adapter=adapter,
        retain_set=index.retain_set_id,
        entries=index.entries,
        remaining=index.remaining,
        records=index.records,
        bytes=index.size,
        created_at=index.created_at,
        purge_at=index.purge_at,
        purged_at=index.purged_at,
    )
