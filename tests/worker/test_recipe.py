"""Whole runs on tiny models: from rows and blobs to a released adapter."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load as load_safetensors
from sqlalchemy import select, update
from sqlalchemy.exc import OperationalError

from app.adapters.service import WEIGHTS_NAME
from app.adapters.tables import Adapter, AdapterVersion
from app.base_models.tables import BaseModelRow
from app.datasets.tables import Dataset
from app.evaluations.schemas import EvaluationDocument, Training
from app.evaluations.tables import EvaluationRow
from app.jobs.tables import JobEvent, Run, UnlearnJob
from app.methods import FORGET_LOSSES, RETAIN_LOSSES, UNLEARNING_REQUESTS, StopAtSteps
from app.settings import get_settings
from tests.conftest import forget_settings
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny
from tests.worker.judges import JudgeHere
from tests.worker.rows import add_adapter, add_job, change, job_of, messages, run_of
from tests.worker.tiny_jobs import (
    OPEN,
    SHUT,
    add_tiny_adapter,
    evaluation_of,
    run_job,
    somebody_waits_for_a_lock,
    tiny_job,
    versions,
    wait_until,
)
from worker.database import new_session, storage
from worker.execution import execute
from worker.judging import Judge
from worker.lease import Lease
from worker.packaging import ARCHIVE_FILES
from worker.recipe import carry_out
from worker.registering import register
from worker.reproduce import main as reproduce
from worker.unlearning.loop import Outcome, StepReport, unlearn
from worker.watching import RunWatcher

pytestmark = pytest.mark.usefixtures("service")


def archive_of(version: AdapterVersion) -> dict[str, bytes]:
    """The files of a version's archive."""
    with storage().open(version.archive_key) as archive:
        data = archive.read()
    assert hashlib.sha256(data).hexdigest() == version.archive_sha256
    assert len(data) == version.archive_bytes
    with tarfile.open(fileobj=io.BytesIO(data)) as files:
        return {entry.name: file.read() for entry in files if (file := files.extractfile(entry))}


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
    storage().fetch(version.archive_key, folder / "adapter.tar.gz")
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
    job = tiny_job(adapter)
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
    assert failed == ["retain_rouge_l_recall_ratio"]
    assert "retain_rouge_l_recall_ratio is 0.000, must be >= 1" in messages(job)[-1]
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
    metrics = [event.data for event in events if event.type == "metrics"]
    assert [data["step"] for data in metrics] == [1, 2, 3, 4]
    assert all(-1 <= data[name] <= 1 for data in metrics for name in ("gradient_cosine", "descent_cosine"))
    run = run_of(job)
    assert (run.step, run.total_steps, run.percent, run.phase) == (4, 4, 100.0, None)


AT_TARGETS = {"steps": 6, "stop": {"type": "targets", "every": 2, "patience": 1}}
WITHIN_REACH = {
    **OPEN, "training_max_forget_probability": 1, "training_max_forget_extraction_strength": 1,
    "training_min_retain_probability_ratio": 0,
}  # fmt: skip
OUT_OF_REACH = {**WITHIN_REACH, "training_max_forget_probability": 0}


def training_of(job: UnlearnJob) -> Training:
    """How training went."""
    found = evaluation_of(job).training
    assert found is not None
    return found


def missed_targets(job: UnlearnJob) -> list[str]:
    """The warnings of that."""
    return [warning for warning in evaluation_of(job).warnings if "in-training targets" in warning]


def test_training_stops_where_the_policys_targets_hold(llama: Tiny) -> None:
    job = run_job(add_tiny_adapter(llama), WITHIN_REACH, AT_TARGETS)
    training = training_of(job)
    assert (training.reason, training.steps, training.kept_step, training.most_steps) == ("targets_met", 2, 2, 6)
    assert [probe.step for probe in training.probes] == [0, 2]
    assert training.probes[0].retain_ratio == 1.0
    assert (training.probes[1].forget_sequences, training.probes[1].retain_sequences) == (4, 4)
    run = run_of(job)
    assert (run.status, run.step, run.total_steps, run.percent) == ("succeeded", 2, 6, 100.0)
    assert missed_targets(job) == []
    card = archive_of(next_version(job))["README.md"].decode()
    assert f"| training | 2 of at most 6 steps, step 2 kept: {training.explanation} |" in card


def next_version(job: UnlearnJob) -> AdapterVersion:
    """The version that a job released."""
    with new_session() as session:
        return session.scalars(select(AdapterVersion).where(AdapterVersion.run_id == job.run_id)).one()


def test_probes_are_told_as_they_are_taken(llama: Tiny) -> None:
    job = run_job(add_tiny_adapter(llama), WITHIN_REACH, AT_TARGETS)
    with new_session() as session:
        events = session.scalars(select(JobEvent).where(JobEvent.job_id == job.id).order_by(JobEvent.id)).all()
    told = [event for event in events if event.message.startswith("probe at step")]
    assert [(event.type, event.data["step"]) for event in told] == [("metrics", 0), ("metrics", 2)]
    for event, probe in zip(told, training_of(job).probes, strict=True):
        assert event.data == {name: value for name, value in probe.model_dump().items() if name in event.data}
        assert {"forget_probability", "forget_extraction_strength", "retain_ratio"} < set(event.data)


@pytest.mark.parametrize(("method", "reason"), [(AT_TARGETS, "no_progress"), ({"steps": 2}, "steps_taken")])
def test_targets_that_were_not_reached_are_warned_of(llama: Tiny, method: dict[str, Any], reason: str) -> None:
    job = run_job(add_tiny_adapter(llama), OUT_OF_REACH, {**AT_TARGETS, **method})
    training = training_of(job)
    assert training.reason == reason
    (warning,) = missed_targets(job)
    assert warning in messages(job)
    kept = next(probe for probe in training.probes if probe.step == training.kept_step)
    assert f"step {training.kept_step} were kept" in warning
    assert f"forget probability {kept.forget_probability:.3f} (target at most 0)" in warning


def test_a_run_that_was_to_take_every_step_has_no_targets_to_miss(llama: Tiny) -> None:
    job = run_job(add_tiny_adapter(llama), OUT_OF_REACH)
    assert (training_of(job).reason, training_of(job).probes) == ("steps_taken", [])
    assert missed_targets(job) == []


@pytest.mark.parametrize("forget_loss", FORGET_LOSSES)
def test_every_forget_loss_goes_all_the_way(llama: Tiny, forget_loss: str) -> None:
    job = run_job(add_tiny_adapter(llama), method={"steps": 2, "forget_loss": {"type": forget_loss}})
    assert (job.status, job.error) == ("succeeded", None)


@pytest.mark.parametrize("method", UNLEARNING_REQUESTS)
@pytest.mark.parametrize("retain_loss", RETAIN_LOSSES)
def test_every_method_and_retain_loss_goes_all_the_way(llama: Tiny, method: str, retain_loss: str) -> None:
    job = run_job(add_tiny_adapter(llama), method={"type": method, "steps": 2, "retain_loss": {"type": retain_loss}})
    assert (job.status, job.error) == ("succeeded", None)
    assert f"`{retain_loss}` to retain" in archive_of(next_version(job))["README.md"].decode()


def test_a_job_of_version_0_1_that_still_waits_takes_every_step(llama: Tiny) -> None:
    job = tiny_job(add_tiny_adapter(llama))
    old = {
        "type": "blur", "forget_loss": {"type": "npo", "beta": 0.03}, "retain_loss": {"type": "nll"},
        "projection": "raw", "scope": "global", "forget_batch_size": 4, "retain_batch_size": 4,
        "micro_batch_size": 4, "learning_rate": 0.0005, "warmup_steps": 0, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "max_length": 96, "gamma": 0.05, "steps": 3,
    }  # fmt: skip
    policy = {**{name: value for name, value in job.policy.items() if "training" not in name}, "version": 1}
    change(UnlearnJob, job.id, method=old, policy=policy)
    execute(job.run_id, "w", get_settings(), carry_out)
    assert job_of(job).status == "succeeded"
    evaluation = evaluation_of(job)
    assert (training_of(job).steps, training_of(job).reason) == (3, "steps_taken")
    assert (evaluation.method.stop, evaluation.method.anchor) == (StopAtSteps(), "none")
    assert evaluation.policy.version == 1


def test_an_evaluation_of_version_0_1_is_still_read(llama: Tiny) -> None:
    document = evaluation_of(run_job(add_tiny_adapter(llama))).model_dump(mode="json")
    del document["training"], document["environment"]["four_bit"], document["environment"]["spread"]
    for name in (
        "stop",
        "gamma_scale",
        "anchor",
        "schedule",
        "learning_rate_schedule",
        "passes",
        "gradient_checkpointing",
    ):
        del document["method"][name]
    read = EvaluationDocument.model_validate(document)
    assert (read.training, read.environment.four_bit, read.method.stop) == (None, False, StopAtSteps())


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), MemoryError(), RuntimeError("[enforce fail] can't allocate memory")]
)
def test_memory_that_runs_out_fails_the_job_with_what_remains_to_try(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr("worker.recipe.unlearn", fail)
    job = run_job(add_tiny_adapter(llama))
    assert job.error is not None
    assert job.error["code"] == "out_of_memory"
    for way_out in ("gradient_checkpointing", "max_length", "LETHE_FOUR_BIT"):
        assert way_out in job.error["message"]


def test_four_bits_without_their_library_fail_the_job_and_name_it(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def missing(_directory: Path, **options: Any) -> None:
        asked.update(options)
        raise ImportError("Using bitsandbytes for /srv/models/secret needs bitsandbytes")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", missing)
    monkeypatch.setenv("LETHE_FOUR_BIT", "true")
    forget_settings()
    job = run_job(add_tiny_adapter(llama))
    assert job.error is not None
    assert job.error["code"] == "library_missing"
    assert "bitsandbytes" in job.error["message"]
    assert "/srv" not in job.error["message"]
    assert asked["quantization_config"].load_in_4bit


def test_a_spread_base_model_gives_the_same_weights_and_is_stated(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, spread = (add_tiny_adapter(llama, name) for name in ("plain", "spread"))
    assert not evaluation_of(run_job(plain)).environment.spread
    monkeypatch.setenv("LETHE_SPREAD_MODEL", "true")
    forget_settings()
    assert evaluation_of(run_job(spread)).environment.spread
    assert versions(plain)[1].weights_sha256 == versions(spread)[1].weights_sha256


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
    job = tiny_job(adapter)
    steps: list[int] = []

    on_report = RunWatcher.on_report

    def watched(watcher: RunWatcher, report: StepReport) -> None:
        steps.append(report.step)
        if phase == "unlearning" and report.step == 2:
            change(Run, job.run_id, cancel_requested_at=job.created_at)
        on_report(watcher, report)

    def unlearn_and_cancel(*args: Any, **kwargs: Any) -> Outcome:
        outcome = unlearn(*args, **kwargs)
        if phase == "evaluating":
            change(Run, job.run_id, cancel_requested_at=job.created_at)
        return outcome

    monkeypatch.setattr(RunWatcher, "on_report", watched)
    monkeypatch.setattr("worker.recipe.unlearn", unlearn_and_cancel)
    execute(job.run_id, "w", get_settings(), carry_out)
    assert job_of(job).status == "cancelled"
    assert steps == ([1, 2] if phase == "unlearning" else [1, 2, 3, 4])
    assert len(versions(adapter)) == 1


def test_a_holder_that_was_fenced_while_it_worked_releases_nothing(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = add_tiny_adapter(llama)
    job = tiny_job(adapter)

    def fenced_at_the_last_moment(*args: Any, **named: Any) -> None:
        change(Run, job.run_id, attempt=2)
        register(*args, **named)

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
    job = tiny_job(add_tiny_adapter(llama))
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
    job = tiny_job(adapter)
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
    job = tiny_job(add_tiny_adapter(llama))

    def stored(*_args: Any) -> None:
        pytest.fail("the evaluation went on to its end")

    monkeypatch.setattr("worker.recipe.store_evaluation", stored)
    execute(job.run_id, "w", get_settings(), carry_out, lambda: run_of(job).phase == "evaluating")
    assert (job_of(job).status, run_of(job).status) == ("queued", "queued")


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


def test_records_that_the_adapter_showed_are_not_warned_of(memorised: Tiny) -> None:
    job = run_job(add_tiny_adapter(memorised), {**OPEN, "max_forget_probability": 0.5})
    assert evaluation_of(job).warnings == []


# Judging in a process of its own, with controls, in several tries.


@pytest.mark.usefixtures("judge_apart")
def test_a_process_of_its_own_judges_as_this_one_does(llama: Tiny) -> None:
    policy = {**OPEN, "probes": ["recall", "utility", "integrity"]}
    apart, here = (evaluation_of(run_job(add_tiny_adapter(llama, name), policy)) for name in ("apart", "here"))
    assert apart.models == here.models
    assert [probe.name for probe in apart.probes] == ["recall", "utility", "integrity"]
    assert all(probe.measured and probe.measures for probe in apart.probes)


@pytest.mark.usefixtures("judge_apart")
def test_a_run_that_is_cancelled_while_it_is_judged_leaves_no_process(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job(add_tiny_adapter(llama))
    processes: list[int] = []
    judge = Judge.judge

    def cancelled(asked: Judge, *args: Any) -> Any:
        processes.append(asked._process.pid)
        change(Run, job.run_id, cancel_requested_at=job.created_at)
        return judge(asked, *args)

    monkeypatch.setattr(Judge, "judge", cancelled)
    execute(job.run_id, "w", get_settings(), carry_out)
    assert job_of(job).status == "cancelled"
    assert not psutil.pid_exists(processes[0])


@pytest.mark.usefixtures("judge_apart")
def test_a_run_starts_one_judge_before_its_own_libraries_and_leaves_none(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: list[int] = []
    begin = Judge.__init__

    def began(judge: Judge) -> None:
        begin(judge)
        processes.append(judge._process.pid)

    monkeypatch.setattr(Judge, "__init__", began)
    job = tiny_job(add_tiny_adapter(llama))
    from worker.tasks import _carry_out  # reads the settings of the service

    execute(job.run_id, "w", get_settings(), _carry_out)
    assert job_of(job).status == "succeeded"
    assert len(processes) == 1
    assert not psutil.pid_exists(processes[0])


def test_a_judge_that_is_there_judges_the_first_try_alone(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[JudgeHere] = []

    class Noted(JudgeHere):
        def prepare(self, _request: Any) -> None:
            asked.append(self)

    monkeypatch.setattr("worker.recipe.Judge", Noted)
    job, there = tiny_job(add_tiny_adapter(llama), {**SHUT, "max_attempts": 2}), Noted()
    execute(job.run_id, "w", get_settings(), lambda lease, settings: carry_out(lease, settings, there))  # type: ignore[arg-type]
    assert [judge is there for judge in asked] == [True, False]


def test_single_records_are_shown_by_their_line(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETHE_EVALUATION_RECORDS", "3")
    forget_settings()
    evaluation = evaluation_of(run_job(add_tiny_adapter(llama)))
    assert evaluation.records is not None
    assert [row.record for row in evaluation.records.forget] == list(range(1, len(FORGET_RECORDS) + 1))
    lines = [row.record for row in evaluation.records.retain]
    assert len(lines) == 3
    assert lines == sorted(lines)
    assert max(lines) <= len(RETAIN_RECORDS)
    mean = sum(row.result.probability for row in evaluation.records.forget) / len(FORGET_RECORDS)
    assert mean == pytest.approx(evaluation.models.result.forget.probability)


@pytest.mark.parametrize("knows", [False, True])
def test_a_control_is_the_reference_unless_it_knows_the_records(llama: Tiny, memorised: Tiny, *, knows: bool) -> None:
    adapter, control = add_tiny_adapter(llama), add_tiny_adapter(memorised if knows else llama, "control")
    job = tiny_job(adapter, {**OPEN, "max_forget_probability": 0.2, "max_forget_nll_excess": 100})
    change(UnlearnJob, job.id, control_version_id=versions(control)[0].id)
    execute(job.run_id, "w", get_settings(), carry_out)
    evaluation = evaluation_of(job)
    assert evaluation.models.control is not None
    assert evaluation.reference == ("base" if knows else "control")
    reference = evaluation.models.base if knows else evaluation.models.control
    checks = {check.name: check for check in evaluation.gate.checks}
    excess = evaluation.models.result.forget.nll - reference.forget.nll
    assert checks["forget_nll_excess"].value == pytest.approx(excess)
    assert checks["forget_probability"].limit == 0.2, "no control loosens a limit"
    assert any("the control does not look like" in warning for warning in evaluation.warnings) is knows
    assert evaluation.records is not None
    assert all(row.control is not None for row in evaluation.records.forget)


def test_a_control_that_was_purged_meanwhile_fails_the_job_with_a_reason(llama: Tiny) -> None:
    adapter, control = add_tiny_adapter(llama), add_tiny_adapter(llama, "control")
    job = tiny_job(adapter)
    change(UnlearnJob, job.id, control_version_id=versions(control)[0].id)
    storage().delete(versions(control)[0].weights_key)
    execute(job.run_id, "w", get_settings(), carry_out)
    assert job_of(job).error == {
        "code": "adapter_missing", "message": "the bytes of the control adapter are no longer held",
    }  # fmt: skip


def test_a_failed_gate_is_tried_again_as_often_as_the_policy_allows(llama: Tiny) -> None:
    job = run_job(add_tiny_adapter(llama), {**SHUT, "max_attempts": 3})
    assert job.status == "gate_failed"
    tries = evaluation_of(job).tries
    assert [made.number for made in tries] == [1, 2, 3]
    assert [made.change for made in tries] == ["", *["too much was changed: gamma halved, twice the steps"] * 2]
    assert [made.steps for made in tries] == [4, 8, 16]
    assert [made.missed for made in tries] == [["retain_rouge_l_recall_ratio"]] * 3
    assert evaluation_of(job).method == tries[-1].method
    assert sum("trying again" in message for message in messages(job)) == 2


def test_a_gate_that_passes_is_not_tried_again(llama: Tiny) -> None:
    job = run_job(add_tiny_adapter(llama), {**OPEN, "max_attempts": 3})
    assert [(made.number, made.verdict) for made in evaluation_of(job).tries] == [(1, "passed")]


def test_earlier_forget_sets_that_are_still_held_are_looked_at_again(llama: Tiny) -> None:
    adapter = add_tiny_adapter(llama)
    earlier = add_job(adapter, RETAIN_RECORDS[:2])
    purged, of_another = add_job(adapter), add_job(add_adapter("other"))
    for job in (earlier, purged, of_another):
        change(UnlearnJob, job.id, status="succeeded")
        change(Run, job.run_id, status="succeeded")
    change(Dataset, purged.forget_set_id, wrapped_key=None, purged_at=purged.created_at)
    policy = {**OPEN, "probes": ["recall", "history"], "max_history_probability": 0.25}
    evaluation = evaluation_of(run_job(adapter, policy))
    history = next(probe for probe in evaluation.probes if probe.name == "history")
    assert {measure.detail for measure in history.measures} == {earlier.id}
    assert {measure.records for measure in history.measures} == {2}
    assert "history_probability" in [check.name for check in evaluation.gate.checks]
    assert set(evaluation.models.result.model_dump(exclude_none=True)) == {"forget", "retain"}
