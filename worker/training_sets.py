"""The training set of an adapter after a release: what was unlearned is taken out of it.

Otherwise the service would itself keep what it promised to forget. What is left becomes a dataset of its own, under a
key of its own; the key of the one before is destroyed in the transaction that makes the new version the head.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from sqlalchemy.orm import Session

from app.adapters.tables import Adapter
from app.audit.record import append
from app.datasets.intake import Intake, Limits, salt_of, salted_digest
from app.datasets.remainder import Remainder
from app.datasets.tables import Dataset
from app.kit.crypto import CryptoError
from app.kit.problems import Invalid
from app.settings import get_settings
from worker.database import new_session, storage, vault
from worker.errors import JobError
from worker.housekeeping import shred_unless_needed
from worker.order import Order


@dataclass(frozen=True)
class Reduced:
    """A training set without the records of a job.

    Attributes:
        before: as it was.
        dataset: what is left: the same where nothing was found, None where nothing is left.
        wanted: different records that the job forgets.
        found: those of them that the training set held.
        removed: records that were taken out, repeated ones included.
    """

    before: Dataset
    dataset: Dataset | None
    wanted: int
    found: int
    removed: int


def remainder(training_set: Dataset, order: Order) -> Remainder:
    """What is left of a training set without the records of a run, record by record.

    Raises:
        JobError: the forget set cannot be opened.
    """
    salt = salt_of(training_set.tenant_id, get_settings().pepper)
    try:
        return Remainder(vault(), training_set, order.datasets["forget"], salt)
    except (CryptoError, FileNotFoundError):
        raise JobError("dataset_unreadable", "the forget set was purged or cannot be opened") from None


def reduce(order: Order) -> Reduced | None:
    """Write what is left of the adapter's training set; None where it has none. Nothing refers to it yet.

    Raises:
        JobError: a set cannot be opened.
    """
    before = order.training_set
    if before is None:
        return None
    left = remainder(before, order)
    try:
        deque(left.lines(), maxlen=0)  # only counts
        dataset = _copy(before, left) if left.removed else before
    except (CryptoError, FileNotFoundError):
        raise JobError("dataset_unreadable", "the training set was purged or cannot be opened") from None
    return Reduced(before, dataset, left.wanted, left.found, left.removed)


def _copy(before: Dataset, left: Remainder) -> Dataset | None:
    """What is left as a dataset, whose blobs are written; None where nothing is."""
    settings = get_settings()
    salt = salt_of(before.tenant_id, settings.pepper)
    # What was taken once is taken again, whatever the limits are now.
    limits = Limits(before.size, before.records)
    try:
        with Intake(storage(), settings.key_ring, before.tenant_id, salt, limits) as intake:
            for line in left.lines():
                intake.feed(line + b"\n")
            return Dataset.of(intake.finish(), before.tenant_id, before.purpose, before.purge_at)
    except Invalid:  # it would be empty
        return None


def discard_unless_held(reduced: Reduced | None) -> None:
    """Remove what was written for a release that did not come, or that found the training set let go of."""
    new = reduced.dataset if reduced is not None and reduced.removed else None
    if new is None:
        return
    with new_session() as session:
        held = session.get(Dataset, new.id) is not None
    if not held:
        vault().delete_blobs(new)


def replace(session: Session, adapter: Adapter, reduced: Reduced, run_id: str) -> None:
    """Have the adapter hold what is left, and destroy what it held, unless somebody has let go of that meanwhile.

    The caller has locked both.
    """
    if adapter.training_set_id != reduced.before.id:
        return
    adapter.unmatched_records += reduced.wanted - reduced.found
    if not reduced.removed:
        return
    new = reduced.dataset
    if new is not None:
        session.add(new)
        session.flush()
        digest = salted_digest(new.sha256, salt_of(new.tenant_id, get_settings().pepper))
        created = {"purpose": new.purpose, "records": new.records, "bytes": new.size, "digest": digest}
        append(session, new.tenant_id, "dataset.created", "dataset", new.id, created)
    adapter.training_set_id = new.id if new is not None else None
    session.flush()
    data = {
        "dataset": adapter.training_set_id,
        "before": reduced.before.id,
        "run": run_id,
        "removed": reduced.removed,
    }
    append(session, adapter.tenant_id, "adapter.training_set", "adapter", adapter.id, data)
    shred_unless_needed(session, reduced.before.id)
