"""Whole runs on tiny models: from rows and blobs to a released adapter."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_safetensors
from sqlalchemy import select, text, update
from sqlalchemy.exc import OperationalError

from app.adapters import peft_config, weights
from app.adapters.service import WEIGHTS_NAME
from app.adapters.tables import Adapter, AdapterVersion
from app.base_models.directory import inspect_directory
from app.base_models.tables import BaseModelRow
from app.datasets.tables import Dataset
from app.evaluations.schemas import EvaluationDocument
from app.evaluations.tables import EvaluationRow
from app.jobs.tables import JobEvent, Run, UnlearnJob
from app.settings import get_settings
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny
from tests.worker.rows import add_adapter, add_job, change, job_of, messages, run_of
from worker.database import engine, new_session, storage
from worker.execution import execute
from worker.lease import Lease
from worker.packaging import ARCHIVE_FILES
from worker.recipe import carry_out
from worker.registering import register
from worker.reproduce import main as reproduce
from worker.unlearning.loop import StepReport, unlearn

pytestmark = pytest.mark.usefixtures("service")

# Tiny random models know nothing, so that the gate is open or shut as a test needs it.
OPEN = {
    "max_forget_probability": 1, "max_forget_extraction_strength": 1, "max_forget_rouge_l_recall": 1,
    "min_retain_probability_ratio": 0, "min_retain_rouge_l_recall_ratio": 0,
}  # fmt: skip
SHUT = {**OPEN, "max_forget_probability": 0}
METHOD = {"steps": 4, "forget_batch_size": 4, "retain_batch_size": 4, "max_length": 96}


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


def run_job(
    adapter: Adapter, policy: dict[str, Any] | None = None, method: dict[str, Any] | None = None
) -> UnlearnJob:
    """A job that was executed, as it is afterwards."""
    job = add_job(adapter, FORGET_RECORDS, RETAIN_RECORDS, method=METHOD | (method or {}), policy=policy or OPEN)
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


def archive_of(version: AdapterVersion) -> dict[str, bytes]:
    """The files of a version's archive."""
    data = storage().local_path(version.archive_key).read_bytes()
    assert hashlib.sha256(data).hexdigest() == version.archive_sha256
    assert len(data) == version.archive_bytes
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {entry.name: file.read() for entry in archive if (file := archive.extractfile(entry))}


def test_every_architecture_goes_all_the_way(tiny: Tiny, tmp_path: Path) -> None:
    adapter = add_tiny_adapter(tiny)
    job = run_job(adapter)
    assert (job.status, job.verdict, job.result_version, job.error) == ("succeeded", "passed", 2, None)
    first, second = versions(adapter)
    assert (first.status, second.status, second.source_version) == ("superseded", "ready", 1)
    assert first.superseded_at is not None
    assert second.run_id == job.run_id
    with new_session() as session:
        assert session.get_one(Adapter, adapter.id).head == 2
    files = archive_of(second)
    assert set(files) == set(ARCHIVE_FILES)
    source, result = (
        load_safetensors(data) for data in ((tiny.adapter / WEIGHTS_NAME).read_bytes(), files[WEIGHTS_NAME])
    )
    assert {key: (value.shape, value.dtype) for key, value in source.items()} == {
        key: (value.shape, value.dtype) for key, value in result.items()
    }
    assert any(not torch.equal(source[key], result[key]) for key in source)
    check_numbers_reproduce(tiny, job, second, tmp_path)


def check_numbers_reproduce(tiny: Tiny, job: UnlearnJob, version: AdapterVersion, folder: Path) -> None:
    """The archive, loaded by plain PEFT, scores as the service says."""
    (folder / "adapter.tar.gz").write_bytes(storage().local_path(version.archive_key).read_bytes())
    for name, records in (("forget", FORGET_RECORDS), ("retain", RETAIN_RECORDS)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sets = [argument for name in ("forget", "retain") for argument in ("--set", f"{name}={folder / name}.jsonl")]
    options = ["--base", str(tiny.base), "--adapter", str(folder / "adapter.tar.gz"), "--max-length", "96"]
    assert reproduce([*options, *sets, "--json", str(folder / "out.json")]) == 0
    measured = json.loads((folder / "out.json").read_text())["sets"]
    stated = evaluation_of(job).models.result.model_dump(exclude_none=True)
    for name, scores in stated.items():
        for metric, value in scores.items():
            assert measured[name][metric] == pytest.approx(value, abs=1e-5), (name, metric)


def test_the_forget_set_is_shredded_after_success_and_the_retain_set_is_not(llama: Tiny) -> None:
    job = run_job(add_tiny_adapter(llama))
    with new_session() as session:
        assert session.get_one(Dataset, job.forget_set_id).wrapped_key is None
        assert session.get_one(Dataset, job.retain_set_id).wrapped_key is not None


def test_a_forget_set_that_another_job_needs_is_kept(llama: Tiny) -> None:
    waiting = add_job(add_adapter("other"))
    adapter = add_tiny_adapter(llama)
    job = add_job(adapter, FORGET_RECORDS, RETAIN_RECORDS, method=METHOD, policy=OPEN)
    change(UnlearnJob, waiting.id, forget_set_id=job.forget_set_id)
    execute(job.run_id, "w", get_settings(), carry_out)
    assert job_of(job).status == "succeeded"
    with new_session() as session:
        assert session.get_one(Dataset, job.forget_set_id).wrapped_key is not None


def test_a_gate_that_fails_releases_nothing_and_says_why(llama: Tiny) -> None:
    adapter = add_tiny_adapter(llama)
    job = run_job(adapter, SHUT)
    assert (job.status, job.verdict, job.result_version) == ("gate_failed", "failed", None)
    assert [version.status for version in versions(adapter)] == ["ready"]
    assert not list((get_settings().storage_dir / "tenants" / "ten_ours").glob("runs"))
    failed = [check.name for check in evaluation_of(job).gate.checks if not check.passed]
    assert failed == ["forget_probability"]
    assert "forget_probability is 0." in messages(job)[-1]
    assert "must be <= 0" in messages(job)[-1]
    with new_session() as session:
        assert session.get_one(Dataset, job.forget_set_id).wrapped_key is not None


def test_the_evaluation_covers_base_source_and_result_on_the_same_records(llama: Tiny) -> None:
    evaluation = evaluation_of(run_job(add_tiny_adapter(llama)))
    for model in (evaluation.models.base, evaluation.models.source, evaluation.models.result):
        assert (model.forget.records, model.retain.records) == (len(FORGET_RECORDS), len(RETAIN_RECORDS))
    assert evaluation.models.source.forget.nll != evaluation.models.base.forget.nll
    assert evaluation.models.source.forget.nll != evaluation.models.result.forget.nll
    assert evaluation.environment.torch.startswith("2.13")
    assert evaluation.not_tested


def test_phases_and_steps_are_told_as_they_happen(llama: Tiny) -> None:
    job = run_job(add_tiny_adapter(llama))
    with new_session() as session:
        events = session.scalars(select(JobEvent).where(JobEvent.job_id == job.id).order_by(JobEvent.id)).all()
    assert [event.data["phase"] for event in events if "phase" in event.data] == [
        "preparing", "unlearning", "evaluating", "packaging", "registering",
    ]  # fmt: skip
    assert [event.data["step"] for event in events if event.type == "metrics"] == [1, 2, 3, 4]
    run = run_of(job)
    assert (run.step, run.total_steps, run.percent, run.phase) == (4, 4, 100.0, None)


def test_a_later_job_starts_from_the_version_that_the_earlier_one_made(llama: Tiny) -> None:
    adapter = add_tiny_adapter(llama)
    run_job(adapter)
    second = run_job(adapter)
    assert (second.status, second.result_version) == ("succeeded", 3)
    assert [version.status for version in versions(adapter)] == ["superseded", "superseded", "ready"]
    assert versions(adapter)[2].source_version == 2
    assert run_of(second).source_version == 2


def test_the_same_job_gives_the_same_bytes(llama: Tiny) -> None:
    adapters = [add_tiny_adapter(llama, name) for name in ("one", "two")]
    for adapter in adapters:
        run_job(adapter)
    one, two = (versions(adapter)[1] for adapter in adapters)
    assert one.weights_sha256 == two.weights_sha256
    other = add_tiny_adapter(llama, "three")
    run_job(other, method={"steps": 3})
    assert versions(other)[1].weights_sha256 != one.weights_sha256


def test_nothing_that_a_run_leaves_behind_quotes_a_record(llama: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    adapter = add_tiny_adapter(llama)
    job = run_job(adapter)
    files = archive_of(versions(adapter)[1])
    with new_session() as session:
        rows = [*session.scalars(select(JobEvent)), *session.scalars(select(EvaluationRow))]
        left = repr([vars(row) for row in rows]) + capsys.readouterr().out + files["README.md"].decode()
    assert job.id in left
    for record in FORGET_RECORDS + RETAIN_RECORDS:
        for quoted in record.values():
            assert quoted.strip() not in left


@pytest.mark.parametrize("phase", ["unlearning", "evaluating"])
def test_a_cancelled_run_stops_and_releases_nothing(llama: Tiny, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    adapter = add_tiny_adapter(llama)
    job = add_job(adapter, FORGET_RECORDS, RETAIN_RECORDS, method=METHOD, policy=OPEN)
    steps: list[int] = []

    def unlearn_and_cancel(*args: Any, on_step: Callable[[StepReport], None], **kwargs: Any) -> None:
        def watched(report: StepReport) -> None:
            steps.append(report.step)
            if phase == "unlearning" and report.step == 2:
                change(Run, job.run_id, cancel_requested_at=job.created_at)
            on_step(report)

        unlearn(*args, on_step=watched, **kwargs)
        if phase == "evaluating":
            change(Run, job.run_id, cancel_requested_at=job.created_at)

    monkeypatch.setattr("worker.recipe.unlearn", unlearn_and_cancel)
    execute(job.run_id, "w", get_settings(), carry_out)
    assert job_of(job).status == "cancelled"
    assert steps == ([1, 2] if phase == "unlearning" else [1, 2, 3, 4])
    assert len(versions(adapter)) == 1


def test_a_holder_that_was_fenced_while_it_worked_releases_nothing(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = add_tiny_adapter(llama)
    job = add_job(adapter, FORGET_RECORDS, RETAIN_RECORDS, method=METHOD, policy=OPEN)

    def fenced_at_the_last_moment(*args: Any) -> None:
        change(Run, job.run_id, attempt=2)
        register(*args)

    monkeypatch.setattr("worker.recipe.register", fenced_at_the_last_moment)
    execute(job.run_id, "w", get_settings(), carry_out)
    assert (job_of(job).status, run_of(job).attempt) == ("running", 2)
    assert len(versions(adapter)) == 1
    assert not [path for path in get_settings().storage_dir.rglob("runs/**/*") if path.is_file()]


def test_an_adapter_whose_bytes_are_not_finite_fails_the_job_with_a_reason(llama: Tiny) -> None:
    content = bytearray((llama.adapter / WEIGHTS_NAME).read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"  # a NaN
    adapter = add_tiny_adapter(llama, base_bytes=bytes(content))
    job = run_job(adapter)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "adapter_unusable"


def test_records_that_were_purged_meanwhile_fail_the_job_with_a_reason(llama: Tiny) -> None:
    job = add_job(add_tiny_adapter(llama), FORGET_RECORDS, RETAIN_RECORDS, method=METHOD, policy=OPEN)
    change(Dataset, job.forget_set_id, wrapped_key=None, purged_at=job.requested_at)
    execute(job.run_id, "w", get_settings(), carry_out)
    assert job_of(job).error == {
        "code": "dataset_unreadable", "message": "the forget set was purged or cannot be opened",
    }  # fmt: skip


def test_a_base_model_that_is_gone_fails_the_job_without_naming_its_folder(llama: Tiny) -> None:
    adapter = add_tiny_adapter(llama)
    with new_session() as session, session.begin():
        row = session.get_one(BaseModelRow, adapter.base_model_id)
        row.directory = "/nowhere/at/all"
    job = run_job(adapter)
    assert job.error is not None
    assert job.error["code"] == "model_unusable"
    assert "nowhere" not in job.error["message"]


def test_a_release_whose_answer_was_lost_keeps_its_bytes(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = add_tiny_adapter(llama)
    end = Lease.end

    def end_and_lose_the_answer(*args: Any, **kwargs: Any) -> None:
        end(*args, **kwargs)
        raise OperationalError("COMMIT", {}, Exception("connection lost"))

    monkeypatch.setattr(Lease, "end", end_and_lose_the_answer)
    assert run_job(adapter).status == "succeeded"
    assert set(archive_of(versions(adapter)[1])) == set(ARCHIVE_FILES)


def test_a_job_that_is_accepted_while_the_run_ends_keeps_its_forget_set(llama: Tiny) -> None:
    adapter = add_tiny_adapter(llama)
    job = add_job(adapter, FORGET_RECORDS, RETAIN_RECORDS, method=METHOD, policy=OPEN)
    later = add_job(add_adapter("other"))
    runner = threading.Thread(target=lambda: execute(job.run_id, "w", get_settings(), carry_out))
    with new_session() as session, session.begin():
        # As the web side does: the dataset is locked, then a job that needs it is stored.
        session.execute(select(Dataset).where(Dataset.id == job.forget_set_id).with_for_update())
        runner.start()
        wait_until(somebody_waits_for_a_lock)
        session.execute(update(UnlearnJob).where(UnlearnJob.id == later.id).values(forget_set_id=job.forget_set_id))
    runner.join()
    assert job_of(job).status == "succeeded"
    with new_session() as session:
        assert session.get_one(Dataset, job.forget_set_id).wrapped_key is not None


def test_evaluating_can_be_stopped(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    job = add_job(add_tiny_adapter(llama), FORGET_RECORDS, RETAIN_RECORDS, method=METHOD, policy=OPEN)

    def stored(*_args: Any) -> None:
        pytest.fail("the evaluation went on to its end")

    monkeypatch.setattr("worker.recipe.store_evaluation", stored)
    execute(job.run_id, "w", get_settings(), carry_out, lambda: run_of(job).phase == "evaluating")
    assert (job_of(job).status, run_of(job).status) == ("queued", "queued")


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


def test_records_that_the_adapter_never_showed_are_warned_of(llama: Tiny) -> None:
    # A random adapter knows nothing: under the default policy it passes the forget checks before unlearning.
    strict = {
        **OPEN,
        "max_forget_probability": 0.2,
        "max_forget_extraction_strength": 0.1,
        "max_forget_rouge_l_recall": 0.45,
    }
    job = run_job(add_tiny_adapter(llama), strict)
    warned = [message for message in messages(job) if "did not show these records" in message]
    assert len(warned) == 1
    assert evaluation_of(job).warnings == warned


def test_records_that_the_adapter_showed_are_not_warned_of(llama: Tiny) -> None:
    job = run_job(add_tiny_adapter(llama), {**OPEN, "max_forget_probability": 0})
    assert evaluation_of(job).warnings == []
