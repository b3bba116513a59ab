"""Jobs on tiny models, executed for real: what tests of whole runs share."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import select, text

from app.adapters import peft_config, weights
from app.adapters.service import WEIGHTS_NAME
from app.adapters.tables import Adapter, AdapterVersion
from app.base_models.directory import inspect_directory
from app.evaluations.schemas import EvaluationDocument
from app.evaluations.tables import EvaluationRow
from app.jobs.tables import UnlearnJob
from app.settings import get_settings
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny
from tests.worker.rows import add_adapter, add_job, job_of
from worker.database import engine, new_session, storage
from worker.execution import execute
from worker.recipe import carry_out

# Tiny random models know nothing, so that the gate is open or shut as a test needs it.
OPEN: dict[str, Any] = {
    "max_forget_probability": 1, "max_forget_extraction_strength": 1, "max_forget_rouge_l_recall": 1,
    "min_retain_probability_ratio": 0, "min_retain_rouge_l_recall_ratio": 0, "probes": ["recall", "utility"],
    "max_forget_nll_excess": None, "min_neighbour_probability_ratio": None, "max_general_nll_increase": None,
}  # fmt: skip
SHUT = {**OPEN, "min_retain_rouge_l_recall_ratio": 1}  # who repeats nothing before keeps nothing
METHOD = {
    "steps": 4, "forget_batch_size": 4, "retain_batch_size": 4, "max_length": 96, "stop": {"type": "steps"},
    "schedule": {"type": "stretch"},
}  # fmt: skip


def add_tiny_adapter(tiny: Tiny, name: str = "support-bot", base_bytes: bytes | None = None) -> Adapter:
    """The tiny adapter as the web side stores it, after the web side's own checks."""
    file = base_bytes or (tiny.adapter / WEIGHTS_NAME).read_bytes()
    config = peft_config.parse((tiny.adapter / "adapter_config.json").read_bytes())
    shapes = inspect_directory(str(tiny.base), [tiny.base.parent]).shapes
    modules = weights.check_weights(io.BytesIO(file), len(file), config, shapes)
    key = f"tenants/ten_ours/adapters/{name}/{WEIGHTS_NAME}"
    with storage().create(key) as sink:
        sink.write(file)
    fields = peft_config.export(config, base_model="acme/tiny", revision=None, modules=modules)
    return add_adapter(name, directory=str(tiny.base), config=fields, weights_key=key)


def tiny_job(
    adapter: Adapter, policy: dict[str, Any] | None = None, method: dict[str, Any] | None = None
) -> UnlearnJob:
    """A queued job, small enough to be executed within a second."""
    return add_job(adapter, FORGET_RECORDS, RETAIN_RECORDS, method=METHOD | (method or {}), policy=policy or OPEN)


def run_job(
    adapter: Adapter, policy: dict[str, Any] | None = None, method: dict[str, Any] | None = None
) -> UnlearnJob:
    """A job that was executed, as it is afterwards."""
    job = tiny_job(adapter, policy, method)
    execute(job.run_id, "w", get_settings(), carry_out)
    return job_of(job)


def versions(adapter: Adapter) -> list[AdapterVersion]:
    """The adapter's versions, oldest first."""
    statement = select(AdapterVersion).where(AdapterVersion.adapter_id == adapter.id).order_by(AdapterVersion.number)
    with new_session() as session:
        return list(session.scalars(statement))


def evaluation_of(job: UnlearnJob) -> EvaluationDocument:
    """What was measured."""
    with new_session() as session:
        row = session.scalars(select(EvaluationRow).where(EvaluationRow.run_id == job.run_id)).one()
    return EvaluationDocument.model_validate(row.document)


def somebody_waits_for_a_lock() -> bool:
    """Whether a transaction is held up by another one."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with engine().connect() as connection:
        return bool(connection.scalar(text(query)))


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; a test that waits for ever is ended here."""
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("did not happen")
