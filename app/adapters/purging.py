"""When a version may be purged, shared by the web side and the light worker.

First the bytes go, then the version is marked and the audit chain gets its receipt: so a receipt is never of bytes
that are still there, and bytes that no version leads to cannot be left behind. Whoever purges holds the version's row
``FOR UPDATE``; whoever accepts a job with the version as its control holds it ``FOR KEY SHARE``. One waits for the
other, so that no job is accepted on bytes that are just being removed.
"""

from __future__ import annotations

from typing import Literal

from sqlalchemy import ColumnElement, exists, func, select, update
from sqlalchemy.orm import Session

from app.adapters.tables import Adapter, AdapterVersion
from app.audit.record import append
from app.jobs.tables import Run, UnlearnJob
from app.kit.storage import Storage

Reason = Literal["asked", "grace"]
_ENDED = ("succeeded", "gate_failed", "failed", "cancelled")


def is_head() -> ColumnElement[bool]:
    """The condition that a version is its adapter's head, from which the next run starts."""
    return exists().where(Adapter.id == AdapterVersion.adapter_id, Adapter.head == AdapterVersion.number)


def is_control() -> ColumnElement[bool]:
    """The condition that a job which has not ended names the version as its control."""
    return exists().where(UnlearnJob.control_version_id == AdapterVersion.id, UnlearnJob.status.not_in(_ENDED))


def is_source() -> ColumnElement[bool]:
    """The condition that a run is working on the version."""
    return exists().where(
        Run.adapter_id == AdapterVersion.adapter_id,
        Run.source_version == AdapterVersion.number,
        Run.status == "running",
    )


def is_needed() -> ColumnElement[bool]:
    """The condition that a version may not be purged."""
    return is_head() | is_control() | is_source()


def still_needed(session: Session, version_id: str) -> bool:
    """Whether a version may not be purged. To be asked in a statement after its row was locked."""
    return bool(session.scalar(select(is_needed()).where(AdapterVersion.id == version_id)))


def delete_bytes(storage: Storage, version: AdapterVersion) -> None:
    """Remove the blobs of a version; the archive first, which is the one that could be handed out."""
    storage.delete(version.archive_key)
    storage.delete(version.weights_key)


def record_purge(session: Session, version: AdapterVersion, reason: Reason) -> None:
    """Mark a version whose bytes are gone, with a receipt in the audit chain."""
    session.execute(
        update(AdapterVersion)
        .where(AdapterVersion.id == version.id)
        .values(status="purged", purged_at=func.clock_timestamp())
    )
    receipt = {
        "adapter": version.adapter_id,
        "number": version.number,
        "weights_sha256": version.weights_sha256,
        "archive_sha256": version.archive_sha256,
        "bytes": version.archive_bytes,
        "reason": reason,
    }
    append(session, version.tenant_id, "adapter.version_purged", "adapter_version", version.id, receipt)
