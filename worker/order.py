"""What a run has to do, read from Postgres when it is claimed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.adapters.tables import Adapter, AdapterVersion
from app.base_models.tables import BaseModelRow
from app.datasets.tables import Dataset
from app.jobs.tables import UnlearnJob
from app.kit.crypto import CryptoError
from app.methods import STORED_METHOD, Method, Policy
from worker.database import new_session, vault
from worker.lease import Claim


class JobError(Exception):
    """The run cannot succeed. The message is for the caller and quotes no record."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Order:
    """One run's inputs. `source` is the adapter's head when the run was claimed."""

    job_id: str
    method: Method
    policy: Policy
    seed: int
    adapter: Adapter
    source: AdapterVersion
    base: BaseModelRow
    datasets: dict[str, Dataset]

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
            return [json.loads(line) for line in self._lines(name)]
        except (CryptoError, FileNotFoundError):
            raise JobError("dataset_unreadable", f"the {name} set was purged or cannot be opened") from None

    def _lines(self, name: str) -> Iterator[bytes]:
        return vault().lines(self.datasets[name])


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
        ).one()
        return Order(
            job_id=job.id,
            method=STORED_METHOD.validate_python(job.method),
            policy=Policy.model_validate(job.policy),
            seed=job.seed,
            adapter=adapter,
            source=source,
            base=session.get_one(BaseModelRow, adapter.base_model_id),
            datasets=_datasets(session, job),
        )


def _datasets(session: Session, job: UnlearnJob) -> dict[str, Dataset]:
    ids = {"forget": job.forget_set_id, "retain": job.retain_set_id, "holdout": job.holdout_set_id}
    return {name: session.get_one(Dataset, row_id) for name, row_id in ids.items() if row_id is not None}
