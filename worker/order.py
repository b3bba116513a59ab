"""What a run has to do, read from Postgres when it is claimed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.adapters.tables import Adapter, AdapterVersion
from app.base_models.tables import BaseModelRow
from app.datasets.tables import Dataset
from app.jobs.schemas import JobCosts
from app.jobs.tables import UnlearnJob
from app.kit.crypto import CryptoError
from app.methods import STORED_METHOD, Method, Policy
from worker.database import new_session, vault
from worker.errors import JobError
from worker.lease import Claim

MOST_EARLIER = 20  # forget sets of earlier jobs that are looked at again, the newest


@dataclass(frozen=True)
class Order:
    """One run's inputs.

    Attributes:
        source: the adapter's head when the run was claimed; None where the run begins a fresh one.
        fresh_lora: shape of the adapter that the run begins.
        datasets: "forget" and "retain" always, "holdout" where it was given.
        control: an adapter that never saw the forget set, where the job names one.
        training_set: what the adapter was trained on, as far as that is held.
        costs: what the job was estimated to cost, where it was.
        earlier: forget sets of earlier jobs on this adapter whose records are still held, by job id.
    """

    job_id: str
    method: Method
    policy: Policy
    seed: int
    adapter: Adapter
    source: AdapterVersion | None
    base: BaseModelRow
    datasets: dict[str, Dataset]
    fresh_lora: dict[str, Any] | None = None
    control: AdapterVersion | None = None
    training_set: Dataset | None = None
    costs: JobCosts | None = None
    earlier: dict[str, Dataset] = field(default_factory=dict)

    @property
    def adapters(self) -> dict[str, AdapterVersion]:
        """The stored adapters that a run needs: the source and the control, where there are such."""
        named = {"source": self.source, "control": self.control}
        return {name: version for name, version in named.items() if version is not None}

    @property
    def source_number(self) -> int | None:
        """Number of the source."""
        return None if self.source is None else self.source.number

    @property
    def number(self) -> int:
        """Number of the version that the run makes."""
        return (self.source_number or 0) + 1

    @property
    def base_knows(self) -> bool:
        """Whether the base model itself knows the records."""
        return self.adapter.fresh

    @property
    def base_directory(self) -> Path:
        """Where the base model lies."""
        return Path(self.base.directory)

    def records(self, name: str) -> list[dict[str, Any]]:
        """The decrypted records of a set.

        Raises:
            JobError: the set was purged or cannot be opened.
        """
        try:
            return list(_lines(self.datasets[name]))
        except (CryptoError, FileNotFoundError):
            raise JobError("dataset_unreadable", f"the {name} set was purged or cannot be opened") from None

    def earlier_records(self, job_id: str) -> list[dict[str, Any]]:
        """The decrypted forget set of an earlier job; empty when it was purged meanwhile."""
        try:
            return list(_lines(self.earlier[job_id]))
        except (CryptoError, FileNotFoundError):
            return []


@dataclass(frozen=True)
class Sample:
    """Some records of a set.

    Attributes:
        records: in their order.
        lines: where each is in its set, from 1.
    """

    records: list[dict[str, Any]]
    lines: list[int]


def sample(records: Sequence[dict[str, Any]], limit: int, seed: int) -> Sample:
    """At most so many records, drawn without replacement; the same seed draws the same ones."""
    if len(records) <= limit:
        return Sample(list(records), list(range(1, len(records) + 1)))
    drawn = sorted(random.Random(seed).sample(range(len(records)), limit))  # noqa: S311 - no secret
    return Sample([records[index] for index in drawn], [index + 1 for index in drawn])


def _lines(dataset: Dataset) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in vault().lines(dataset))


def read_order(held: Claim) -> Order:
    """Read the inputs of a claimed run."""
    with new_session() as session:
        job = session.scalars(
            select(UnlearnJob).where(UnlearnJob.run_id == held.run_id, UnlearnJob.tenant_id == held.tenant_id)
        ).one()
        adapter = session.get_one(Adapter, held.adapter_id)
        source = session.scalars(
            select(AdapterVersion).where(
                AdapterVersion.adapter_id == adapter.id, AdapterVersion.number == adapter.head
            )
        ).one_or_none()
        if (source is None) != (job.fresh_lora is not None):
            raise JobError("head_moved", "the adapter got its first version by another job; send a new request")
        return Order(
            job_id=job.id,
            method=STORED_METHOD.validate_python(job.method),
            policy=Policy.model_validate(job.policy),
            seed=job.seed,
            adapter=adapter,
            source=source,
            fresh_lora=job.fresh_lora,
            base=session.get_one(BaseModelRow, adapter.base_model_id),
            datasets=_datasets(session, job),
            control=session.get_one(AdapterVersion, job.control_version_id) if job.control_version_id else None,
            training_set=_training_set(session, adapter),
            costs=JobCosts.model_validate(job.costs) if job.costs else None,
            earlier=_earlier(session, job),
        )


def _datasets(session: Session, job: UnlearnJob) -> dict[str, Dataset]:
    ids = {"forget": job.forget_set_id, "retain": job.retain_set_id, "holdout": job.holdout_set_id}
    return {name: session.get_one(Dataset, row_id) for name, row_id in ids.items() if row_id is not None}


def _training_set(session: Session, adapter: Adapter) -> Dataset | None:
    """What the adapter was trained on, unless that was destroyed, as repairs do with a set whose bytes are lost."""
    found = session.get(Dataset, adapter.training_set_id) if adapter.training_set_id else None
    return found if found is not None and found.purged_at is None else None


def _earlier(session: Session, job: UnlearnJob) -> dict[str, Dataset]:
    """Forget sets of jobs that have succeeded on this adapter, as far as their records are still held."""
    succeeded = (
        select(UnlearnJob.id, Dataset)
        .join(Dataset, Dataset.id == UnlearnJob.forget_set_id)
        .where(
            UnlearnJob.adapter_id == job.adapter_id,
            UnlearnJob.tenant_id == job.tenant_id,
            UnlearnJob.status == "succeeded",
            UnlearnJob.id != job.id,
            Dataset.purged_at.is_(None),
            Dataset.id != job.forget_set_id,
        )
        .order_by(UnlearnJob.created_at.desc())
        .limit(MOST_EARLIER)
    )
    return {row[0]: row[1] for row in session.execute(succeeded)}
