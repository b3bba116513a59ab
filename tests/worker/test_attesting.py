"""What a run signs is what was ordered, measured and written; without a key, or of other bytes, nothing is."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from app.attestations.keys import EVERY_KEY
from app.attestations.statement import ATTESTATION_FILE, Predicate
from app.attestations.tables import Attestation, SigningKey
from app.attestations.verify import Proof, verify_archive
from app.audit.chain import document_digest
from app.audit.tables import AuditEntry
from app.datasets.intake import salt_of, salted_digest
from app.datasets.tables import Dataset
from app.evaluations.tables import EvaluationRow
from app.jobs.tables import UnlearnJob
from app.kit.signing import PrivateKey
from app.methods import DEFAULT_POLICY
from app.settings import get_settings
from tests.conftest import SIGNING_KEY, forget_settings
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny
from tests.worker.tiny_jobs import SHUT, add_tiny_adapter, run_job, versions
from worker import packaging
from worker.database import new_session, storage
from worker.registering import register

pytestmark = pytest.mark.usefixtures("service")


def proof_of(job: UnlearnJob, key: PrivateKey = SIGNING_KEY) -> Proof:
    """The released archive, verified as an auditor does."""
    with new_session() as session:
        row = session.scalars(select(Attestation).where(Attestation.job_id == job.id)).one()
    with storage().open(f"tenants/{job.tenant_id}/runs/{row.run_id}/1/adapter.tar.gz") as archive:
        return verify_archive(archive, [key.public])


def rows(table: type[Attestation] | type[SigningKey]) -> list[Any]:
    """Every row."""
    with new_session() as session:
        return list(session.scalars(select(table)))


def test_a_released_archive_verifies_and_the_stored_envelope_is_the_one_in_it(llama: Tiny) -> None:
    adapter = add_tiny_adapter(llama)
    job = run_job(adapter)
    assert job.status == "succeeded", job.error
    proof = proof_of(job)
    assert f"is the result of {job.id}, which passed policy default v{DEFAULT_POLICY.version}" in proof.sentence()
    stored = rows(Attestation)[0]
    assert (stored.job_id, stored.run_id, stored.version_id) == (job.id, job.run_id, versions(adapter)[1].id)
    assert stored.key_id == proof.key_id == SIGNING_KEY.public.key_id
    with storage().open(versions(adapter)[1].archive_key) as stream, tarfile.open(fileobj=stream) as archive:
        file = archive.extractfile(ATTESTATION_FILE)
        assert file is not None
        assert file.read().decode() == stored.envelope


def test_everything_is_stated_as_it_is_stored(llama: Tiny) -> None:
    adapter = add_tiny_adapter(llama)
    job = run_job(adapter)
    facts = proof_of(job).statement.predicate
    source, result = versions(adapter)
    assert (facts.job, facts.run, facts.attempt) == (job.id, job.run_id, 1)
    assert (facts.adapter.name, facts.adapter.version) == (adapter.name, result.number)
    assert facts.fresh_lora is None
    assert facts.source is not None
    assert facts.source.model_dump() == {
        "version": source.number, "weights_sha256": source.weights_sha256, "archive_sha256": source.archive_sha256,
    }  # fmt: skip
    assert facts.method == job.method
    assert facts.policy.model_dump(exclude_none=True) == {
        name: value for name, value in job.policy.items() if value is not None
    }
    assert facts.seed == job.seed
    assert facts.evaluation.weights_sha256 == result.weights_sha256
    assert facts.times.started_at <= facts.times.evaluated_at
    check_evaluation(job, facts)
    check_datasets(job, facts)


def check_evaluation(job: UnlearnJob, facts: Predicate) -> None:
    """Numbers are those of the stored evaluation, and its digest is the one in the audit chain."""
    with new_session() as session:
        row = session.scalars(select(EvaluationRow).where(EvaluationRow.run_id == job.run_id)).one()
        noted = session.scalars(select(AuditEntry).where(AuditEntry.subject_id == row.id)).one()
        head = session.scalars(
            select(AuditEntry).where(
                AuditEntry.tenant_id == job.tenant_id, AuditEntry.sequence == facts.audit_head.sequence
            )
        ).one()
    assert [check.model_dump() for check in facts.checks] == row.document["gate"]["checks"]
    assert facts.scores == row.document["models"]
    assert facts.not_tested == row.document["not_tested"]
    assert facts.warnings == row.document["warnings"]
    assert facts.environment == row.document["environment"]
    assert (facts.evaluation.id, facts.evaluation.sha256) == (row.id, document_digest(row.document))
    assert noted.data["sha256"] == facts.evaluation.sha256
    # The head that is stated covers the evaluation.
    assert facts.audit_head.hash == head.hash
    assert facts.audit_head.sequence >= noted.sequence


def check_datasets(job: UnlearnJob, facts: Predicate) -> None:
    """Sets are named by id, count and a digest that nobody else can compute."""
    settings = get_settings()
    for name, stated in (("forget", facts.datasets.forget), ("retain", facts.datasets.retain)):
        with new_session() as session:
            row = session.get_one(Dataset, getattr(job, f"{name}_set_id"))
        assert (stated.id, stated.records) == (row.id, row.records)
        assert stated.salted_digest == salted_digest(row.sha256, salt_of(job.tenant_id, settings.pepper))
    assert facts.datasets.holdout is None


def test_nothing_of_the_records_and_no_plain_digest_of_them_is_stated(llama: Tiny) -> None:
    job = run_job(add_tiny_adapter(llama))
    payload = proof_of(job).payload.decode()
    for record in FORGET_RECORDS + RETAIN_RECORDS:
        assert record["prompt"] not in payload
        assert record["completion"].strip() not in payload
    with new_session() as session:
        assert session.get_one(Dataset, job.forget_set_id).sha256 not in payload
    assert str(llama.base) not in payload


def test_what_the_card_says_of_limits_is_signed(llama: Tiny) -> None:
    facts = proof_of(run_job(add_tiny_adapter(llama))).statement.predicate
    assert tuple(facts.limits) == packaging.LIMITS
    assert facts.not_tested


def test_a_gate_that_fails_is_not_attested(llama: Tiny) -> None:
    assert run_job(add_tiny_adapter(llama), SHUT).status == "gate_failed"
    assert rows(Attestation) == rows(SigningKey) == []


def test_without_a_key_nothing_is_trained_or_released(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LETHE_SIGNING_KEY")
    forget_settings()
    monkeypatch.setattr("worker.recipe.read_order", lambda _claim: pytest.fail("the run began"))
    adapter = add_tiny_adapter(llama)
    job = run_job(adapter)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "signing_key_missing"
    assert len(versions(adapter)) == 1


def test_weights_that_changed_after_they_were_evaluated_are_not_attested(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed_before(lease: Any, order: Any, folder: Path, store: Any) -> None:
        data = bytearray((folder / packaging.WEIGHTS_FILE).read_bytes())
        data[-1] ^= 1
        (folder / packaging.WEIGHTS_FILE).write_bytes(data)
        register(lease, order, folder, store)

    monkeypatch.setattr("worker.recipe.register", changed_before)
    adapter = add_tiny_adapter(llama)
    job = run_job(adapter)
    assert (job.status, job.result_version) == ("failed", None)
    assert len(versions(adapter)) == 1
    assert rows(Attestation) == []


def test_a_release_that_is_not_committed_leaves_no_attestation(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = add_tiny_adapter(llama)

    def fail(*_args: Any) -> None:
        raise RuntimeError("the last step")

    monkeypatch.setattr("worker.registering.shred_unless_needed", fail)
    assert run_job(adapter).status == "failed"
    assert len(versions(adapter)) == 1
    assert rows(Attestation) == []


def test_a_new_key_signs_the_next_release_and_the_old_one_still_verifies(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_job(add_tiny_adapter(llama, "first"))
    new = PrivateKey.generate()
    monkeypatch.setenv("LETHE_SIGNING_KEY", new.export())
    forget_settings()
    after = run_job(add_tiny_adapter(llama, "second"))
    assert proof_of(before).key_id == SIGNING_KEY.public.key_id
    assert proof_of(after, new).key_id == new.public.key_id
    with new_session() as session:
        listed = list(session.scalars(EVERY_KEY))
    assert [(row.id, row.retired_at is None) for row in listed] == [
        (new.public.key_id, True),
        (SIGNING_KEY.public.key_id, False),
    ]


def test_the_key_is_in_no_text_of_the_settings() -> None:
    assert SIGNING_KEY.export() not in repr(get_settings()) + json.dumps(get_settings().model_dump(mode="json"))
