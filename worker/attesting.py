"""Signs what is released: the statement of a run, from what was ordered, measured and written."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.adapters.archive import file_sha256
from app.adapters.tables import AdapterVersion
from app.attestations import statement
from app.attestations.keys import record_use
from app.attestations.statement import Facts, build_statement
from app.attestations.tables import Attestation
from app.audit.record import head
from app.datasets.intake import salt_of, salted_digest
from app.datasets.tables import Dataset
from app.evaluations.tables import EvaluationRow
from app.kit.ids import new_id
from app.kit.signing import PrivateKey
from app.settings import Settings, get_settings
from worker import packaging
from worker.database import new_session
from worker.errors import JobError
from worker.lease import Claim
from worker.order import Order


def attest(held: Claim, order: Order, folder: Path, training_set: Dataset | None = None) -> Attestation:
    """Sign the statement of a run that passed, and write it beside the files that it is about.

    Reads the evaluation that this attempt stored, so that nothing else than what was stored can be stated.

    Args:
        folder: holds the files of the archive but the attestation, as they will be packed.
        training_set: what the adapter is to hold from now on as its training set.

    Returns:
        The row to be stored together with the release; it lacks the id of the version.

    Raises:
        JobError: the worker has no key.
        ValueError: the gate did not pass, or the files are not those that were evaluated.
    """
    settings = get_settings()
    key = require_key(settings)
    with new_session() as session, session.begin():
        record_use(session, key.public)
        facts = _facts(session, held, order, folder, settings, training_set)
    envelope = key.sign(build_statement(facts).payload(), statement.PAYLOAD_TYPE)
    (folder / statement.ATTESTATION_FILE).write_bytes(envelope)
    return Attestation(
        id=new_id("att"),
        tenant_id=held.tenant_id,
        job_id=order.job_id,
        run_id=held.run_id,
        key_id=key.public.key_id,
        envelope=envelope.decode(),
    )


def require_key(settings: Settings) -> PrivateKey:
    """The key that signs. Raises JobError when the worker was given none."""
    if settings.signer is None:
        raise JobError("signing_key_missing", "the worker has no LETHE_SIGNING_KEY; nothing is released unsigned")
    return settings.signer


def _facts(
    session: Session, held: Claim, order: Order, folder: Path, settings: Settings, training_set: Dataset | None
) -> Facts:
    of_this_attempt = select(EvaluationRow).where(
        EvaluationRow.run_id == held.run_id, EvaluationRow.attempt == held.attempt
    )
    evaluation = session.scalars(of_this_attempt).one()
    base, salt = order.base, salt_of(held.tenant_id, settings.pepper)
    files = {name: file_sha256(folder / name) for name in statement.SUBJECTS}
    # Last, because it holds the chain until the transaction ends.
    newest = head(session, held.tenant_id)
    return Facts(
        job=order.job_id,
        run=held.run_id,
        attempt=held.attempt,
        times=statement.Times(
            started_at=held.started_at, evaluated_at=evaluation.created_at, signed_at=datetime.now(UTC)
        ),
        files=files,
        adapter=statement.AdapterFacts(name=order.adapter.name, version=order.number),
        base_model=statement.BaseModelFacts(name=base.name, revision=base.revision, sha256=base.digest),
        source=None if order.source is None else _version(order.source),
        fresh_lora=order.fresh_lora,
        control=None if order.control is None else _version(order.control),
        datasets=statement.Datasets(**{name: _set(dataset, salt) for name, dataset in order.datasets.items()}),
        evaluation_id=evaluation.id,
        evaluation=evaluation.document,
        audit_head=statement.AuditHead(sequence=newest.sequence, hash=newest.hash),
        limits=packaging.limits(
            base_knows=order.base_knows, exact=is_exact(evaluation.document), anew=order.method.type == "retrain"
        ),
        training_set=None if training_set is None else _set(training_set, salt),
    )


def is_exact(evaluation: Mapping[str, Any]) -> bool:
    """Whether an evaluation is of a result that was trained anew without any of the forget set."""
    return bool((evaluation.get("retraining") or {}).get("exact"))


def _version(row: AdapterVersion) -> statement.VersionFacts:
    return statement.VersionFacts(
        version=row.number, weights_sha256=row.weights_sha256, archive_sha256=row.archive_sha256
    )


def _set(dataset: Dataset, salt: bytes) -> statement.DatasetFacts:
    digest = salted_digest(dataset.sha256, salt)
    return statement.DatasetFacts(id=dataset.id, records=dataset.records, salted_digest=digest)
