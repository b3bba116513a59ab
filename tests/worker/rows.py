"""Rows that a worker finds, written by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select, update

from app.adapters.tables import Adapter, AdapterVersion
from app.auth.tables import Tenant
from app.base_models.tables import BaseModelRow
from app.datasets.intake import Intake, Limits, salt_of
from app.datasets.records import to_line, validate_record
from app.datasets.tables import Dataset
from app.jobs.tables import JobEvent, Run, UnlearnJob
from app.kit.ids import new_id
from app.methods import DEFAULT_POLICY, METHOD_REQUEST
from app.settings import get_settings
from worker.database import new_session, storage

TENANT = "ten_ours"


def add_adapter(name: str = "support-bot", *, directory: str = "/nowhere", **version: Any) -> Adapter:
    """An adapter with its first version; `version` overrides the version's columns."""
    base = BaseModelRow(
        id=new_id("bm"), tenant_id=TENANT, name=f"base-of-{name}", source="x", directory=directory,
        architecture="LlamaForCausalLM", digest="0" * 64, parameters=1, shapes={},
    )  # fmt: skip
    adapter = Adapter(id=new_id("ad"), tenant_id=TENANT, base_model_id=base.id, name=name, head=1)
    columns = {
        "config": {}, "weights_key": "none", "weights_sha256": "0" * 64, "archive_key": "none",
        "archive_sha256": "0" * 64, "archive_bytes": 1, **version,
    }  # fmt: skip
    first = AdapterVersion(id=new_id("av"), tenant_id=TENANT, adapter_id=adapter.id, number=1, **columns)
    with new_session() as session, session.begin():
        if session.get(Tenant, TENANT) is None:
            session.add(Tenant(id=TENANT, name="ours"))
        for row in (base, adapter, first):
            session.flush()
            session.add(row)
    return adapter


def reserve_adapter(name: str, directory: str) -> Adapter:
    """An adapter without a version, as a job on a base model reserves it, and its base model."""
    base = BaseModelRow(
        id=new_id("bm"), tenant_id=TENANT, name=f"base-of-{name}", source="x", directory=directory,
        architecture="LlamaForCausalLM", digest="0" * 64, parameters=1, shapes={},
    )  # fmt: skip
    adapter = Adapter(id=new_id("ad"), tenant_id=TENANT, base_model_id=base.id, name=name, head=0, fresh=True)
    with new_session() as session, session.begin():
        if session.get(Tenant, TENANT) is None:
            session.add(Tenant(id=TENANT, name="ours"))
        for row in (base, adapter):
            session.flush()
            session.add(row)
    return adapter


def add_dataset(purpose: str, records: list[dict[str, Any]]) -> Dataset:
    """An encrypted dataset."""
    settings = get_settings()
    intake = Intake(storage(), settings.key_ring, TENANT, salt_of(TENANT, settings.pepper), Limits(2**20, 10_000))
    with intake:
        for record in records:
            intake.feed(to_line(validate_record(record)))
        stored = intake.finish()
    dataset = Dataset(
        id=stored.dataset_id, tenant_id=TENANT, purpose=purpose, records=stored.records, size=stored.bytes,
        sha256=stored.sha256, duplicates=stored.duplicates, blob_key=stored.blob_key, digests_key=stored.digests_key,
        key_id=stored.wrapped.key_id, wrapped_key=stored.wrapped.ciphertext,
        purge_at=datetime(2999, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    with new_session() as session, session.begin():
        session.add(dataset)
    return dataset


def add_job(
    adapter: Adapter,
    forget: list[dict[str, Any]] | None = None,
    retain: list[dict[str, Any]] | None = None,
    *,
    method: dict[str, Any] | None = None,
    policy: dict[str, Any] | None = None,
    **columns: Any,
) -> UnlearnJob:
    """A queued job with its run, as the web side stores it, but for the outbox message."""
    forget_set = add_dataset("forget", forget or [{"text": "forget me"}])
    retain_set = add_dataset("retain", retain or [{"text": "keep me"}])
    run = Run(id=new_id("run"), tenant_id=TENANT, adapter_id=adapter.id)
    now = datetime.now(UTC)
    knobs = METHOD_REQUEST.validate_python(method or {}).resolve(forget_set.records)
    job = UnlearnJob(
        id=new_id("job"), tenant_id=TENANT, adapter_id=adapter.id, run_id=run.id, forget_set_id=forget_set.id,
        retain_set_id=retain_set.id, method=knobs.model_dump(),
        policy={**DEFAULT_POLICY.model_dump(), **(policy or {})},
        seed=7, requested_at=now, due_at=now, labels={}, **columns,
    )  # fmt: skip
    with new_session() as session, session.begin():
        session.add(run)
        session.flush()
        session.add(job)
    return job


def run_of(job: UnlearnJob) -> Run:
    """The run as it is now."""
    with new_session() as session:
        return session.get_one(Run, job.run_id)


def job_of(job: UnlearnJob) -> UnlearnJob:
    """The job as it is now."""
    with new_session() as session:
        return session.get_one(UnlearnJob, job.id)


def messages(job: UnlearnJob) -> list[str]:
    """The job's history, oldest first."""
    with new_session() as session:
        return list(session.scalars(select(JobEvent.message).where(JobEvent.job_id == job.id).order_by(JobEvent.id)))


def change(table: type[Run] | type[UnlearnJob] | type[Dataset], row_id: str, **values: Any) -> None:
    """Change a row behind everybody's back."""
    with new_session() as session, session.begin():
        session.execute(update(table).where(table.id == row_id).values(**values))
