"""When a dataset may be purged, and how its key is destroyed. Shared by the web side and the workers."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, func, or_, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from app import outbox
from app.adapters.tables import Adapter
from app.audit.record import append
from app.datasets.tables import Dataset
from app.jobs.tables import LIVE, UnlearnJob


def needs(dataset_id: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """The condition that a job has not ended and uses the dataset."""
    uses = or_(
        UnlearnJob.forget_set_id == dataset_id,
        UnlearnJob.retain_set_id == dataset_id,
        UnlearnJob.holdout_set_id == dataset_id,
    )
    return and_(uses, UnlearnJob.status.in_(LIVE))


def is_default(dataset_id: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """The condition that an adapter keeps the dataset as its default retain set."""
    return Adapter.default_retain_set_id == dataset_id


def trains(dataset_id: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """The condition that an adapter holds the dataset as what it was trained on."""
    return Adapter.training_set_id == dataset_id


def shred(session: Session, dataset_id: str) -> None:
    """Destroy a dataset's data key: from then on nothing opens its bytes, wherever a copy of them is.

    The audit chain gets a receipt, and the light worker removes the blobs, both once this is committed.
    """
    shredded = session.execute(
        update(Dataset)
        .where(Dataset.id == dataset_id, Dataset.purged_at.is_(None))
        .values(wrapped_key=None, purged_at=func.now())
        .returning(Dataset.tenant_id, Dataset.purpose, Dataset.records, Dataset.size)
    ).one_or_none()
    session.execute(outbox.delete_blobs(dataset_id))
    if shredded is not None:
        tenant_id, purpose, records, size = shredded
        receipt = {"purpose": purpose, "records": records, "bytes": size}
        append(session, tenant_id, "dataset.purged", "dataset", dataset_id, receipt)
