"""Registering adapters and handing out their versions."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from anyio import to_thread
from sqlalchemy.exc import IntegrityError

from app.adapters import peft_config, purging, weights
from app.adapters.archive import ArchiveDigest, write_archive
from app.adapters.present import present_adapter, uploaded_card
from app.adapters.references import is_alias, number_of
from app.adapters.repository import AdapterRepository
from app.adapters.schemas import AdapterRead
from app.adapters.tables import Adapter, AdapterVersion
from app.base_models.repository import BaseModelRepository
from app.base_models.tables import BaseModelRow
from app.datasets.repository import DatasetRepository
from app.kit.ids import new_id
from app.kit.problems import Conflict, Gone, NotFound, invalid_field
from app.kit.scratch import scratch_folder
from app.kit.storage import Storage
from app.methods import Recipe

WEIGHTS_NAME = "adapter_model.safetensors"


@dataclass(frozen=True)
class AdapterUpload:
    """A new adapter as it came in. `weights` is positioned at its start; `size` is its length in bytes.

    `recipe` is there where `training_set` is.
    """

    name: str
    base_model: str
    config: bytes
    weights: BinaryIO
    size: int
    default_retain_set: str | None
    training_set: str | None = None
    recipe: Recipe | None = None


class AdapterService:
    """Adapters of one tenant."""

    def __init__(
        self,
        adapters: AdapterRepository,
        bases: BaseModelRepository,
        datasets: DatasetRepository,
        storage: Storage,
        tenant_id: str,
    ) -> None:
        self._adapters = adapters
        self._bases = bases
        self._datasets = datasets
        self._storage = storage
        self._tenant_id = tenant_id

    async def register(self, upload: AdapterUpload) -> Adapter:
        """Check an upload against its base model and store it as version 1 of a new adapter.

        Raises:
            Invalid: configuration or weights do not fit, or the base model is unknown.
            Conflict: the name is taken.
        """
        taken = Conflict(f"an adapter named {upload.name!r} is registered, or reserved by a job; take another name")
        if await self._adapters.by_name(upload.name) is not None:
            raise taken
        base = await self._bases.by_name(upload.base_model)
        if base is None:
            raise invalid_field("/base_model", "no base model of this name is registered; POST /base-models first")
        # By id, as everybody locks several datasets.
        named = {"retain": upload.default_retain_set, "training": upload.training_set}
        for purpose, dataset_id in sorted(named.items(), key=lambda each: each[1] or ""):
            await self._check_set(purpose, dataset_id, f"/{purpose}_set")
        adapter = Adapter(
            id=new_id("ad"),
            tenant_id=self._tenant_id,
            base_model_id=base.id,
            default_retain_set_id=upload.default_retain_set,
            training_set_id=upload.training_set,
            recipe=upload.recipe.model_dump() if upload.recipe else None,
            name=upload.name,
            head=1,
        )
        version = await to_thread.run_sync(self._store, adapter, base, upload)
        try:
            await self._adapters.add(adapter, version, undo=lambda: self._discard(version))
        except IntegrityError:
            raise taken from None
        return adapter

    async def _check_set(self, purpose: str, dataset_id: str | None, pointer: str) -> None:
        if dataset_id is None:
            return
        # Locked until the adapter names it, so that nobody purges the dataset in between.
        dataset = await self._datasets.by_id(dataset_id, lock=True)
        if dataset is None or dataset.purpose != purpose or dataset.purged_at is not None:
            raise invalid_field(pointer, f"no {purpose} set with this id; POST /datasets?purpose={purpose} first")

    def _store(self, adapter: Adapter, base: BaseModelRow, upload: AdapterUpload) -> AdapterVersion:
        config = peft_config.parse(upload.config)
        _check_base_name(config, base)
        modules = weights.check_weights(upload.weights, upload.size, config, base.shapes)
        fields = peft_config.export(config, base_model=base.name, revision=base.revision, modules=modules)
        folder = f"tenants/{self._tenant_id}/adapters/{adapter.id}/1"
        weights_key, archive_key = f"{folder}/{WEIGHTS_NAME}", f"{folder}/adapter.tar.gz"
        with scratch_folder() as directory:
            digest = _spool(upload.weights, directory / WEIGHTS_NAME)
            archive = self._put(directory, fields, adapter.name, weights_key, archive_key)
        return AdapterVersion(
            id=new_id("av"),
            tenant_id=self._tenant_id,
            adapter_id=adapter.id,
            number=1,
            config=fields,
            weights_key=weights_key,
            weights_sha256=digest,
            archive_key=archive_key,
            archive_sha256=archive.sha256,
            archive_bytes=archive.bytes,
        )

    def _put(
        self, directory: Path, fields: dict[str, object], name: str, weights_key: str, archive_key: str
    ) -> ArchiveDigest:
        (directory / "adapter_config.json").write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
        (directory / "README.md").write_text(uploaded_card(name, fields))
        with (directory / WEIGHTS_NAME).open("rb") as source, self._storage.create(weights_key) as sink:
            while chunk := source.read(1024**2):
                sink.write(chunk)
        with self._storage.create(archive_key) as sink:
            return write_archive(sorted(directory.iterdir()), sink)

    def _discard(self, version: AdapterVersion) -> None:
        self._storage.delete(version.weights_key)
        self._storage.delete(version.archive_key)

    async def get(self, name: str) -> Adapter:
        """The adapter of that name. Raises NotFound."""
        adapter = await self._adapters.by_name(name)
        if adapter is None:
            raise NotFound("there is no adapter of this name; GET /adapters lists them")
        return adapter

    async def version(self, name: str, reference: str) -> AdapterVersion:
        """A version by number, "head" or alias.

        Raises:
            NotFound: there is none.
            Gone: an alias points at a version that was superseded or purged.
        """
        version = await self._adapters.referenced(await self.get(name), reference)
        if version is None:
            raise NotFound(f"adapter {name!r} has no such version; GET /adapters/{name}/versions lists them")
        if is_alias(reference) and version.status != "ready":
            raise Gone(
                f"this alias points at version {version.number}, which is {version.status}; "
                f"move it with PUT /adapters/{name}/aliases/{reference}"
            )
        return version

    async def downloadable(self, name: str, reference: str) -> AdapterVersion:
        """A version that may be handed out. Raises NotFound, or Gone when it was superseded or purged."""
        version = await self.version(name, reference)
        check_ready(version)
        return version

    def record_link(self, version: AdapterVersion, seconds: int) -> None:
        """Have the audit chain say that a link to a version was made."""
        self._adapters.record_link(version, seconds)

    async def to_point_at(self, adapter: Adapter, number: int) -> AdapterVersion:
        """The version that an alias may point at.

        Raises:
            Invalid: there is none of that number.
            Conflict: it was superseded or purged.
        """
        version = await self._adapters.version(adapter.id, number)
        if version is None:
            raise invalid_field("/version", "the adapter has no version of this number")
        if version.status != "ready":
            raise Conflict(f"version {number} is {version.status}; an alias points at a version that is handed out")
        return version

    async def update(self, name: str, retain_set: str | None) -> Adapter:
        """Set or clear the default retain set. Raises NotFound, or Invalid when there is no such retain set."""
        adapter = await self.get(name)
        await self._check_set("retain", retain_set, "/default_retain_set")
        if adapter.default_retain_set_id != retain_set:
            await self._adapters.set_default_retain_set(adapter, retain_set)
        return adapter

    async def drop_training_set(self, name: str) -> None:
        """Have an adapter hold no training set any more, and destroy it. Repeating it does no harm.

        Raises:
            NotFound: there is no such adapter.
            Conflict: a job that has not ended is to train it anew.
        """
        adapter = await self.get(name)
        if adapter.training_set_id is None:
            return
        job_id = await self._adapters.retraining_job(adapter)
        if job_id is not None:
            raise Conflict(f"job {job_id} is to train the adapter anew; cancel it or wait for its end")
        dataset = await self._datasets.by_id(adapter.training_set_id, lock=True)
        if dataset is None or not await self._adapters.release_training_set(adapter, dataset.id):
            return
        if dataset.purged_at is None and await self._datasets.training_of(dataset.id) is None:
            await self._datasets.shred(dataset)

    async def purge(self, name: str, number: str) -> None:
        """Delete the bytes of a version now. Repeating it does no harm.

        Raises:
            NotFound: there is no version of that number; aliases and "head" are not taken here.
            Conflict: it is the head, or something that has not ended needs it.
        """
        adapter = await self.get(name)
        found = await self._adapters.version(adapter.id, number_of(number) or 0)
        version = await self._adapters.hold(found.id, to_purge=True) if found else None
        if version is None:
            raise NotFound(
                f"adapter {name!r} has no version of this number; GET /adapters/{name}/versions lists them"
            )
        if version.status == "purged":
            return
        head, control, source = await self._adapters.needs(version.id)
        if head:
            raise Conflict("it is the adapter's head, which is never purged")
        if control or source:
            raise Conflict("a job that has not ended needs this version; cancel the job or wait for its end")
        await to_thread.run_sync(purging.delete_bytes, self._storage, version)
        await self._adapters.mark_purged(version)

    async def present(self, adapters: list[Adapter]) -> list[AdapterRead]:
        """The outside view."""
        bases = await self._adapters.base_names(adapters)
        heads = await self._adapters.head_versions(adapters)
        counts = await self._adapters.version_counts(adapters)
        return [
            present_adapter(adapter, bases[adapter.base_model_id], heads[adapter.id], counts[adapter.id])
            for adapter in adapters
        ]


def check_ready(version: AdapterVersion) -> None:
    """Raise Gone when a version was superseded or purged."""
    if version.status != "ready":
        raise Gone(f"version {version.number} is {version.status}; download 'head' instead")


def _check_base_name(config: peft_config.PlainLora, base: BaseModelRow) -> None:
    """Refuse an adapter that names another public base model. A path of the machine that trained it says nothing."""
    named = config.base_model_name_or_path or ""
    is_path = named.startswith(("/", ".", "~")) or named.count("/") > 1 or "\\" in named
    if named and not is_path and named != base.name:
        raise invalid_field(
            "/adapter_config/base_model_name_or_path",
            "names another base model than the field base_model; register the adapter under its own base, or correct "
            "the name in adapter_config.json",
        )


def _spool(source: BinaryIO, target: Path) -> str:
    source.seek(0)
    digest = hashlib.sha256()
    with target.open("wb") as sink:
        while chunk := source.read(1024**2):
            digest.update(chunk)
            sink.write(chunk)
    return digest.hexdigest()
