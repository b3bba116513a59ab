"""The end of a run: store what was measured, and release what passed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.adapters.archive import file_sha256
from app.adapters.service import WEIGHTS_NAME
from app.adapters.tables import Adapter, AdapterVersion
from app.attestations.tables import Attestation
from app.audit.chain import document_digest
from app.audit.record import append
from app.datasets.tables import Dataset
from app.evaluations.schemas import EvaluationDocument
from app.evaluations.tables import EvaluationRow
from app.identities.purging import shred_claimed
from app.kit.ids import new_id
from app.kit.storage import Storage
from worker import packaging, training_sets
from worker.attesting import attest
from worker.database import new_session
from worker.errors import JobError
from worker.housekeeping import shred_unless_needed
from worker.lease import Lease
from worker.order import Order


def store_evaluation(lease: Lease, document: EvaluationDocument) -> None:
    """Store an evaluation under the attempt that made it. Raises Fenced when the hold is lost."""
    held = lease.claim
    row = EvaluationRow(
        id=new_id("ev"),
        tenant_id=held.tenant_id,
        run_id=held.run_id,
        attempt=held.attempt,
        document=document.model_dump(mode="json"),
    )
    data = {
        "run": held.run_id,
        "attempt": held.attempt,
        "verdict": document.gate.verdict,
        "sha256": document_digest(row.document),
    }
    lease.store(
        row, with_it=lambda session: append(session, held.tenant_id, "evaluation.stored", "evaluation", row.id, data)
    )


def register(lease: Lease, order: Order, folder: Path, storage: Storage, **job_values: object) -> None:
    """Release the adapter in `folder`: it is attested, then one transaction makes it the head and ends the job.

    `job_values` are columns of the job, written along.

    What was unlearned leaves the adapter's training set in the same transaction.

    Raises:
        Fenced: the hold is lost; nothing was released.
        JobError: the worker has no key to sign with, a set cannot be opened, or the adapter has another head by now.
    """
    reduced = training_sets.reduce(order)
    try:
        attestation = attest(lease.claim, order, folder, reduced.dataset if reduced else None)
        _register(lease, order, folder, storage, attestation, reduced, job_values)
    finally:
        training_sets.discard_unless_held(reduced)


def _register(
    lease: Lease,
    order: Order,
    folder: Path,
    storage: Storage,
    attestation: Attestation,
    reduced: training_sets.Reduced | None,
    job_values: Mapping[str, object],
) -> None:
    version = _store(lease, order, folder, storage)
    try:
        lease.end(
            "succeeded",
            f"released as version {version.number}",
            with_it=lambda session: _release(session, order, version, attestation, reduced),
            verdict="passed",
            result_version=version.number,
            **job_values,
        )
    except BaseException:
        _discard_unless_released(version, storage)
        raise


def _discard_unless_released(version: AdapterVersion, storage: Storage) -> None:
    """Remove the blobs of this attempt, unless its transaction was committed and only the answer was lost."""
    with new_session() as session:
        released = session.get(AdapterVersion, version.id) is not None
    if not released:
        storage.delete(version.weights_key)
        storage.delete(version.archive_key)


def _store(lease: Lease, order: Order, folder: Path, storage: Storage) -> AdapterVersion:
    held = lease.claim
    place = f"tenants/{held.tenant_id}/runs/{held.run_id}/{held.attempt}"
    weights_key, archive_key = f"{place}/{WEIGHTS_NAME}", f"{place}/adapter.tar.gz"
    with (folder / WEIGHTS_NAME).open("rb") as source, storage.create(weights_key) as sink:
        while chunk := source.read(1024**2):
            sink.write(chunk)
    with storage.create(archive_key) as sink:
        archive = packaging.write_archive(folder, sink)
    return AdapterVersion(
        id=new_id("av"),
        tenant_id=held.tenant_id,
        adapter_id=order.adapter.id,
        number=order.number,
        config=json.loads((folder / packaging.CONFIG_FILE).read_bytes()),
        weights_key=weights_key,
        weights_sha256=file_sha256(folder / WEIGHTS_NAME),
        archive_key=archive_key,
        archive_sha256=archive.sha256,
        archive_bytes=archive.bytes,
        source_version=order.source_number,
        run_id=held.run_id,
    )


def _release(
    session: Session,
    order: Order,
    version: AdapterVersion,
    attestation: Attestation,
    reduced: training_sets.Reduced | None,
) -> None:
    # The datasets first, as whoever accepts a job does, and the adapter without excluding foreign keys to it: in the
    # other order the two would wait for each other.
    dataset_id = order.datasets["forget"].id
    ids = [dataset_id, *([reduced.before.id] if reduced else [])]
    session.execute(select(Dataset.id).where(Dataset.id.in_(ids)).order_by(Dataset.id).with_for_update())
    locked = select(Adapter).where(Adapter.id == order.adapter.id).with_for_update(key_share=True)
    adapter = session.scalars(locked).one()
    if adapter.head != order.number - 1:
        raise JobError("head_moved", "the adapter got a new version during the run; retry the job")
    session.add(version)
    session.flush()
    attestation.version_id = version.id
    session.add(attestation)
    adapter.head = version.number
    if order.source is not None:
        session.execute(
            update(AdapterVersion)
            .where(AdapterVersion.id == order.source.id)
            .values(status="superseded", superseded_at=func.now())
        )
    _record_release(session, order, version, attestation)
    if reduced is not None:
        training_sets.replace(session, adapter, reduced, str(version.run_id))
    # The job itself has ended within this transaction, so that only others count.
    shred_unless_needed(session, dataset_id)
    shred_claimed(session, str(version.run_id))


def _record_release(session: Session, order: Order, version: AdapterVersion, attestation: Attestation) -> None:
    source = order.source
    released = {
        "adapter": version.adapter_id,
        "number": version.number,
        "run": version.run_id,
        "source": source.id if source else None,
        "weights_sha256": version.weights_sha256,
        "archive_sha256": version.archive_sha256,
    }
    tenant_id = version.tenant_id
    append(session, tenant_id, "adapter.version_released", "adapter_version", version.id, released)
    if source is not None:
        superseded = {"adapter": version.adapter_id, "number": source.number, "by": version.id}
        append(session, tenant_id, "adapter.version_superseded", "adapter_version", source.id, superseded)
    signed = {
        "job": attestation.job_id,
        "version": version.id,
        "key": attestation.key_id,
        "sha256": hashlib.sha256(attestation.envelope.encode()).hexdigest(),
    }
    append(session, tenant_id, "attestation.signed", "attestation", attestation.id, signed)
