"""Queries on adapters and their versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import Row, Select, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.adapters import purging
from app.adapters.references import HEAD, is_alias, number_of
from app.adapters.tables import Adapter, AdapterAlias, AdapterVersion
from app.attestations.tables import Attestation
from app.audit.record import append
from app.base_models.tables import BaseModelRow
from app.jobs.tables import LIVE, UnlearnJob
from app.kit.db import on_rollback
from app.kit.pagination import newest_first, split_page


class AdapterRepository:
    """Adapters of one tenant."""

    def __init__(self, session: AsyncSession, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    # Built when they are asked for: a job is accepted without most of them.
    @property
    def _mine(self) -> Select[Adapter]:
        # Without those that have no version yet: for everybody but the jobs that are to make one, they are not there.
        return select(Adapter).where(Adapter.tenant_id == self._tenant_id, Adapter.head > 0)

    @property
    def _versions(self) -> Select[AdapterVersion]:
        return select(AdapterVersion).where(AdapterVersion.tenant_id == self._tenant_id)

    @property
    def _bases(self) -> Select[str, str]:
        return select(BaseModelRow.id, BaseModelRow.name).where(BaseModelRow.tenant_id == self._tenant_id)

    async def by_name(self, name: str) -> Adapter | None:
        """The adapter of that name."""
        return await self._session.scalar(self._mine.where(Adapter.name == name))

    async def page(self, limit: int, cursor: str | None) -> tuple[list[Adapter], bool]:
        """One page of adapters, newest first, and whether more follow."""
        statement = newest_first(self._mine, Adapter.created_at, Adapter.id, limit, cursor)
        return split_page((await self._session.scalars(statement)).all(), limit)

    async def base_names(self, adapters: list[Adapter]) -> dict[str, str]:
        """Names of the adapters' base models by id."""
        ids = {adapter.base_model_id for adapter in adapters}
        rows = await self._session.execute(self._bases.where(BaseModelRow.id.in_(ids)))
        return {row.id: row.name for row in rows}

    async def base_of(self, adapter: Adapter) -> BaseModelRow:
        """The base model of an adapter."""
        statement = select(BaseModelRow).where(
            BaseModelRow.tenant_id == self._tenant_id, BaseModelRow.id == adapter.base_model_id
        )
        return (await self._session.scalars(statement)).one()

    async def version(self, adapter_id: str, number: int) -> AdapterVersion | None:
        """A version by number."""
        return await self._session.scalar(
            self._versions.where(AdapterVersion.adapter_id == adapter_id, AdapterVersion.number == number)
        )

    async def referenced(self, adapter: Adapter, reference: str) -> AdapterVersion | None:
        """A version by number, "head" or alias."""
        if is_alias(reference):
            pointed = AdapterAlias.version_id == AdapterVersion.id
            named = (AdapterAlias.adapter_id == adapter.id, AdapterAlias.name == reference)
            return await self._session.scalar(self._versions.join(AdapterAlias, pointed).where(*named))
        number = adapter.head if reference == HEAD else number_of(reference)
        return await self.version(adapter.id, number) if number else None

    async def hold(self, version_id: str, *, to_purge: bool = False) -> AdapterVersion | None:
        """A version as it is now, which nobody can purge until the transaction ends."""
        return await self._session.scalar(
            self._versions.where(AdapterVersion.id == version_id)
            .with_for_update(read=not to_purge, key_share=not to_purge)
            .execution_options(populate_existing=True)
        )

    async def named(self, version_id: str) -> Row[str, AdapterVersion] | None:
        """A version by id, with its adapter's name."""
        found = select(Adapter.name, AdapterVersion).join(Adapter, Adapter.id == AdapterVersion.adapter_id)
        mine = found.where(AdapterVersion.tenant_id == self._tenant_id, AdapterVersion.id == version_id)
        return (await self._session.execute(mine)).one_or_none()

    def record_link(self, version: AdapterVersion, seconds: int) -> None:
        """Have the audit chain say that a link to a version was made; the link itself is kept nowhere."""
        data = {
            "adapter": version.adapter_id,
            "number": version.number,
            "archive_sha256": version.archive_sha256,
            "expires_in": seconds,
        }
        session = self._session.sync_session
        append(session, self._tenant_id, "adapter.link_made", "adapter_version", version.id, data)

    async def head_versions(self, adapters: Sequence[Adapter]) -> dict[str, AdapterVersion]:
        """The adapters' heads by the adapter's id."""
        mine = self._versions.join(Adapter, Adapter.id == AdapterVersion.adapter_id)
        heads = mine.where(Adapter.id.in_([each.id for each in adapters]), Adapter.head == AdapterVersion.number)
        return {version.adapter_id: version for version in await self._session.scalars(heads)}

    async def version_counts(self, adapters: Sequence[Adapter]) -> dict[str, int]:
        """How many versions the adapters have, by the adapter's id."""
        counted = (
            select(AdapterVersion.adapter_id, func.count())
            .where(AdapterVersion.tenant_id == self._tenant_id)
            .where(AdapterVersion.adapter_id.in_([adapter.id for adapter in adapters]))
            .group_by(AdapterVersion.adapter_id)
        )
        return {row[0]: row[1] for row in await self._session.execute(counted)}

    async def jobs_of(self, versions: Sequence[AdapterVersion]) -> Sequence[UnlearnJob]:
        """The jobs of the runs that made the versions, oldest first."""
        runs = [version.run_id for version in versions if version.run_id is not None]
        jobs = select(UnlearnJob).where(UnlearnJob.tenant_id == self._tenant_id, UnlearnJob.run_id.in_(runs))
        return (await self._session.scalars(jobs.order_by(UnlearnJob.created_at, UnlearnJob.id))).all()

    async def attestation_digests(self, versions: Sequence[AdapterVersion]) -> dict[str, str]:
        """sha256 (hex) of the versions' attestations, by the version's id."""
        digest = func.encode(func.sha256(func.convert_to(Attestation.envelope, "UTF8")), "hex")
        found = select(Attestation.version_id, digest).where(
            Attestation.tenant_id == self._tenant_id, Attestation.version_id.in_([each.id for each in versions])
        )
        return {row[0]: row[1] for row in await self._session.execute(found)}

    async def needs(self, version_id: str) -> Row[bool, bool, bool]:
        """Whether a version is the head, a live job's control, or what a run works on."""
        asked = select(purging.is_head(), purging.is_control(), purging.is_source())
        return (await self._session.execute(asked.where(AdapterVersion.id == version_id))).one()

    async def mark_purged(self, version: AdapterVersion) -> None:
        """Mark a version whose bytes are gone."""
        await self._session.run_sync(purging.record_purge, version, "asked")

    async def set_default_retain_set(self, adapter: Adapter, dataset_id: str | None) -> None:
        """Have jobs that name no retain set use this one, or have none."""
        data = {"dataset": dataset_id, "before": adapter.default_retain_set_id}
        adapter.default_retain_set_id = dataset_id
        await self._session.flush()
        session = self._session.sync_session
        append(session, self._tenant_id, "adapter.default_retain_set", "adapter", adapter.id, data)

    async def retraining_job(self, adapter: Adapter) -> str | None:
        """The id of a job that has not ended and is to train the adapter anew."""
        mine = (UnlearnJob.tenant_id == self._tenant_id, UnlearnJob.adapter_id == adapter.id)
        live = select(UnlearnJob.id).where(*mine, UnlearnJob.status.in_(LIVE))
        return await self._session.scalar(live.where(UnlearnJob.method["type"].astext == "retrain").limit(1))

    async def release_training_set(self, adapter: Adapter, dataset_id: str) -> bool:
        """Have the adapter hold no training set; whether it held this one until now."""
        mine = (Adapter.tenant_id == self._tenant_id, Adapter.id == adapter.id)
        held = update(Adapter).where(*mine, Adapter.training_set_id == dataset_id)
        if await self._session.scalar(held.values(training_set_id=None).returning(Adapter.id)) is None:
            return False
        data = {"dataset": None, "before": dataset_id}
        append(self._session.sync_session, self._tenant_id, "adapter.training_set", "adapter", adapter.id, data)
        return True

    async def version_page(
        self, adapter_id: str, limit: int, cursor: str | None
    ) -> tuple[list[AdapterVersion], bool]:
        """One page of an adapter's versions, newest first, and whether more follow."""
        mine = self._versions.where(AdapterVersion.adapter_id == adapter_id)
        statement = newest_first(mine, AdapterVersion.created_at, AdapterVersion.id, limit, cursor)
        return split_page((await self._session.scalars(statement)).all(), limit)

    async def add(self, adapter: Adapter, version: AdapterVersion, undo: Callable[[], None]) -> None:
        """Store a new adapter with its first version; `undo` is called should the transaction fail.

        Raises:
            IntegrityError: the name is taken.
        """
        await on_rollback(self._session, undo)
        self._session.add(adapter)
        await self._session.flush()
        self._session.add(version)
        await self._session.flush()
        data = {
            "base_model": adapter.base_model_id,
            "version": version.id,
            "number": version.number,
            "weights_sha256": version.weights_sha256,
            "archive_sha256": version.archive_sha256,
            **({"training_set": adapter.training_set_id} if adapter.training_set_id else {}),
        }
        append(self._session.sync_session, self._tenant_id, "adapter.registered", "adapter", adapter.id, data)
