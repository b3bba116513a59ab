"""When a dataset may be purged, and how its key is destroyed. Shared by the web side and the workers."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Update, and_, func, or_, update
from sqlalchemy.orm import InstrumentedAttribute

from app.adapters.tables import Adapter
from app.datasets.tables import Dataset
from app.jobs.tables import UnlearnJob


def needs(dataset_id: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """The condition that a job has not ended and uses the dataset."""
    uses = or_(
        UnlearnJob.forget_set_id == dataset_id,
        UnlearnJob.retain_set_id == dataset_id,
        UnlearnJob.holdout_set_id == dataset_id,
    )
    return and_(uses, UnlearnJob.status.in_(("queued", "running")))


def is_default(dataset_id: str | InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """The condition that an adapter keeps the dataset as its default retain set."""
    return Adapter.default_retain_set_id == dataset_id


def shred(dataset_id: str) -> Update:
    """Destroy a dataset's data key: from then on nothing opens its bytes, wherever a copy of them is."""
    return (
        update(Dataset)
        .where(Dataset.id == dataset_id, Dataset.purged_at.is_(None))
        .values(wrapped_key=None, purged_at=func.now())
    )
