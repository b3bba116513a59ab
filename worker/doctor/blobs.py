"""Bytes and rows, held against each other both ways.

The bytes are listed first and the rows are read then: whoever commits a row in between has stored its bytes before.
What no row names may be on its way to one, so that only what is old enough counts; the result of a run is nobody's
as soon as the run is no longer held by the attempt that stored it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.adapters.tables import AdapterVersion
from app.datasets import purging
from app.datasets.tables import Dataset
from app.identities.purging import shred_index
from app.identities.tables import IdentityIndex
from app.jobs.tables import LIVE, Run, UnlearnJob
from worker import housekeeping
from worker.database import new_session, storage
from worker.doctor.findings import Finding

_PIECE = 1024**2
_RESTORE = "nothing here can bring them back: restore the storage from a backup"


@dataclass
class Rows:
    """What the database says of bytes.

    Attributes:
        named: storage keys that must be there.
        purged: those that must not be there any more.
        attempts: of runs that are held, by run.
        live: runs that have not ended.
    """

    named: set[str] = field(default_factory=set)
    purged: set[str] = field(default_factory=set)
    attempts: dict[str, int] = field(default_factory=dict)
    live: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, session: Session) -> Rows:
        """As they are now."""
        rows = cls()
        for keys, purged in _keys(session):
            (rows.purged if purged else rows.named).update(keys)
        for run_id, attempt, status in session.execute(select(Run.id, Run.attempt, Run.status)):
            if status in LIVE:
                rows.live.add(run_id)
            if status == "running":
                rows.attempts[run_id] = attempt
        return rows

    def is_orphan(self, key: str, age: float) -> bool:
        """Whether no row names such a blob, and none is about to."""
        if key in self.named:
            return False
        match key.split("/"):
            case ["tenants", _, "runs", run_id, attempt, _]:
                return self.attempts.get(run_id) != int(attempt)
        try:
            return key in self.purged or storage().age(key) >= age
        except FileNotFoundError:
            return False


def storage_is_missing() -> bool:
    """Whether rows name blobs and none of them is there: most likely the storage is not mounted."""
    with new_session() as session:
        named = Rows.read(session).named
    return bool(named) and not any(map(_is_there, named))


def without_rows(age: float) -> Iterator[Finding]:
    """Blobs that no row names, checkpoints of ended runs, and what writers that were killed left."""
    listed, checkpoints = storage().keys("tenants"), storage().keys("checkpoints")
    with new_session() as session:
        rows = Rows.read(session)
    for key in listed:
        if rows.is_orphan(key, age):
            detail = "of something that was purged" if key in rows.purged else "no row names it"
            yield Finding("blob_without_row", key, detail, "deleted", partial(_delete, key, age))
    for run_id in sorted({key.split("/")[1] for key in checkpoints} - rows.live):
        repair = partial(housekeeping.delete_checkpoints, run_id)
        yield Finding("checkpoint_of_ended_run", run_id, "the run has ended", "deleted", repair)
    for name in storage().unfinished(age):
        detail, repair = "its writer is gone", partial(storage().discard, name)
        yield Finding("unfinished_blob", name, detail, "deleted", repair)


def without_bytes(*, digests: bool) -> Iterator[Finding]:
    """Rows whose bytes are gone or, where `digests` is asked for, are not those that were stored."""
    with new_session() as session:
        versions = session.scalars(select(AdapterVersion).where(AdapterVersion.status != "purged")).all()
        datasets = session.scalars(select(Dataset).where(Dataset.purged_at.is_(None))).all()
        indexes = session.scalars(select(IdentityIndex).where(IdentityIndex.purged_at.is_(None))).all()
    for version in versions:
        yield from _version(version, digests=digests)
    for dataset in datasets:
        if not (_is_there(dataset.blob_key) and _is_there(dataset.digests_key)):
            remedy = "its key is destroyed, unless a job that has not ended needs it"
            repair = partial(_shred, dataset.id)
            yield Finding("dataset_without_bytes", dataset.id, f"a {dataset.purpose} set", remedy, repair)
    for index in indexes:
        if not _is_there(index.blob_key):
            yield Finding("index_without_bytes", index.id, "", "purged", partial(_shred_index, index.id))


def _version(version: AdapterVersion, *, digests: bool) -> Iterator[Finding]:
    keys = {version.weights_key: version.weights_sha256, version.archive_key: version.archive_sha256}
    missing = [key for key in keys if not _is_there(key)]
    detail = f"version {version.number} of {version.adapter_id}, {version.status}"
    if missing and version.status == "superseded":
        remedy = "marked as purged once its grace period is over"
        yield Finding("version_without_bytes", version.id, detail, remedy, housekeeping.purge_versions)
    elif missing:
        yield Finding("version_without_bytes", version.id, detail, _RESTORE)
    elif storage().size(version.archive_key) != version.archive_bytes or (
        digests and any(_sha256(key) != digest for key, digest in keys.items())
    ):
        yield Finding("version_with_other_bytes", version.id, detail, _RESTORE)


def _keys(session: Session) -> Iterator[tuple[tuple[str, ...], bool]]:
    """The storage keys of each row, and whether it was purged."""
    version = AdapterVersion
    for weights, archive, status in session.execute(select(version.weights_key, version.archive_key, version.status)):
        yield (weights, archive), status == "purged"
    for blob, index, at in session.execute(select(Dataset.blob_key, Dataset.digests_key, Dataset.purged_at)):
        yield (blob, index), at is not None
    for blob, at in session.execute(select(IdentityIndex.blob_key, IdentityIndex.purged_at)):
        yield (blob,), at is not None


def _delete(key: str, age: float) -> None:
    with new_session() as session:
        still = Rows.read(session).is_orphan(key, age)
    if still:
        storage().delete(key)


def _shred(dataset_id: str) -> None:
    with new_session() as session, session.begin():
        session.execute(select(Dataset.id).where(Dataset.id == dataset_id).with_for_update())
        needed = session.scalar(select(UnlearnJob.id).where(purging.needs(dataset_id)).limit(1))
        if needed is None:
            purging.shred(session, dataset_id)


def _shred_index(index_id: str) -> None:
    with new_session() as session, session.begin():
        shred_index(session, index_id)


def _is_there(key: str) -> bool:
    try:
        storage().size(key)
    except FileNotFoundError:
        return False
    return True


def _sha256(key: str) -> str:
    digest = hashlib.sha256()
    with storage().open(key) as blob:
        while piece := blob.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
