"""Runs on a base model that itself knows the records: a fresh LoRA is begun, and becomes version 1."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load as load_safetensors
from safetensors.torch import load_file
from sqlalchemy import update
from torch.nn import Linear
from transformers.pytorch_utils import Conv1D

from app.adapters import peft_config, weights
from app.adapters.service import WEIGHTS_NAME
from app.adapters.tables import Adapter, AdapterVersion
from app.attestations.statement import ATTESTATION_FILE
from app.base_models.directory import inspect_directory
from app.base_models.tables import BaseModelRow
from app.jobs import resolve, transitions
from app.jobs.tables import UnlearnJob
from app.methods import ProbeName
from app.settings import get_settings
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, encode
from tests.worker.evaluation.subjects import HOLDOUT_RECORDS, FakeSubject
from tests.worker.rows import add_job, job_of, reserve_adapter, run_of
from tests.worker.test_recipe import archive_of
from tests.worker.tiny_jobs import OPEN, SHUT, evaluation_of, versions
from worker.database import new_session
from worker.evaluation.battery import PROBES
from worker.evaluation.evaluate import evaluate_model
from worker.execution import execute
from worker.packaging import BASE_KNOWS, CARD_FILE
from worker.recipe import carry_out
from worker.reporting import NO_REFERENCE
from worker.unlearning.lora import fresh_adapter, known_peft_warnings
from worker.unlearning.models import load_base

RECORDS = {"forget": FORGET_RECORDS, "retain": RETAIN_RECORDS}
SHORT = {"steps": 4, "stop": {"type": "steps"}}
pytestmark = pytest.mark.usefixtures("service")
LORA = {"base_model": "acme/knows", "rank": 4, "alpha": 8.0, "target_modules": "all-linear"}
METHOD: dict[str, Any] = {
    "anchor": "none", "steps": 120, "forget_batch_size": 4, "retain_batch_size": 4, "max_length": 96,
    "learning_rate": 1e-2, "stop": {"type": "targets", "every": 5},
}  # fmt: skip


@pytest.fixture(scope="session")
def knows(memorised: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model that knows both sets by heart."""
    folder = tmp_path_factory.mktemp("knows")
    model, tokenizer = memorised.load()
    model.merge_and_unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def fresh_job(adapter: Adapter, policy: dict[str, Any] | None = None, method: Any = None, **shape: Any) -> UnlearnJob:
    """A queued job that begins the adapter."""
    return add_job(
        adapter,
        FORGET_RECORDS,
        RETAIN_RECORDS,
        method=METHOD | (method or {}),
        policy=policy or OPEN,
        fresh_lora=LORA | shape,
    )


def run(job: UnlearnJob) -> UnlearnJob:
    """The job after it was executed."""
    execute(job.run_id, "w", get_settings(), carry_out)
    return job_of(job)


def head_of(adapter: Adapter) -> int:
    """As it is now."""
    with new_session() as session:
        return session.get_one(Adapter, adapter.id).head


def unpack(version: AdapterVersion, folder: Path) -> Path:
    """The version's files in a folder."""
    folder.mkdir()
    for name, data in archive_of(version).items():
        (folder / name).write_bytes(data)
    return folder


def in_peft(base: Path, folder: Path) -> tuple[Any, Any]:
    """The adapter as anybody loads it, and the tokenizer."""
    model, tokenizer = load_base(base)
    with known_peft_warnings():
        return PeftModel.from_pretrained(model, str(folder)), tokenizer


def test_what_a_base_model_knows_is_unlearned_by_a_fresh_adapter(knows: Path, tmp_path: Path) -> None:
    adapter = reserve_adapter("forgetful", str(knows))
    policy = resolve.policy("default", base_knows=True)
    job = run(fresh_job(adapter, policy.model_dump()))
    assert (job.status, job.error, job.result_version, head_of(adapter)) == ("succeeded", None, 1, 1)
    assert run_of(job).source_version is None
    (version,) = versions(adapter)
    assert (version.number, version.status, version.source_version, version.run_id) == (1, "ready", None, job.run_id)
    evaluation = evaluation_of(job)
    assert (evaluation.source_version, evaluation.reference) == (None, None)
    before, after = evaluation.models.source.forget, evaluation.models.result.forget
    assert before.probability == pytest.approx(evaluation.models.base.forget.probability)
    assert before.probability > 0.5 > 0.2 > after.probability
    model, tokenizer = in_peft(knows, unpack(version, tmp_path / "unpacked"))
    sets = {name: encode(records, tokenizer) for name, records in RECORDS.items()}
    seen = evaluate_model(model, tokenizer, sets, batch_size=4)
    assert seen["forget"].probability == pytest.approx(after.probability, abs=1e-5)
    assert seen["retain"].probability == pytest.approx(evaluation.models.result.retain.probability, abs=1e-5)


def test_its_papers_say_that_the_base_model_still_knows(knows: Path) -> None:
    adapter = reserve_adapter("forgetful", str(knows))
    job = run(fresh_job(adapter, resolve.policy("default", base_knows=True).model_dump()))
    evaluation, (version,) = evaluation_of(job), versions(adapter)
    limits = {name: limit for name, limit in evaluation.policy.model_dump().items() if name.startswith("max_")}
    for check in evaluation.gate.checks:  # what the base shows has loosened none
        if check.comparison == "<=" and check.name != "integrity_violations":
            assert check.limit == limits[f"max_{check.name}"], check.name
    judged = {check.name for check in evaluation.gate.checks}
    assert not judged & {"forget_nll_excess", "membership_auc_distance", "relearned_excess"}
    assert NO_REFERENCE in evaluation.not_tested
    assert BASE_KNOWS in evaluation.warnings
    files = archive_of(version)
    card = files[CARD_FILE].decode()
    assert BASE_KNOWS in card
    assert "A fresh LoRA adapter on `base-of-forgetful`" in card
    payload = json.loads(base64.b64decode(json.loads(files[ATTESTATION_FILE])["payload"]))["predicate"]
    assert (payload["source"], payload["fresh_lora"]) == (None, LORA)
    assert payload["adapter"] == {"name": "forgetful", "version": 1}
    assert BASE_KNOWS in payload["limits"]


def test_every_architecture_gets_a_plain_adapter(tiny: Tiny, tmp_path: Path) -> None:
    adapter = reserve_adapter("forgetful", str(tiny.base))
    job = run(fresh_job(adapter, method=SHORT))
    assert (job.status, job.error) == ("succeeded", None)
    folder = unpack(versions(adapter)[0], tmp_path / "unpacked")
    config = json.loads((folder / "adapter_config.json").read_bytes())
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    assert not any("." in name or name == "lm_head" for name in config["target_modules"])
    state = load_file(folder / WEIGHTS_NAME)
    # What anybody uploads is checked in this way.
    shapes = inspect_directory(str(tiny.base), [tiny.base.parent]).shapes
    parsed = peft_config.parse((folder / "adapter_config.json").read_bytes())
    with (folder / WEIGHTS_NAME).open("rb") as file:
        modules = weights.check_weights(file, (folder / WEIGHTS_NAME).stat().st_size, parsed, shapes)
    model, _ = in_peft(tiny.base, folder)
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())
    linear = [name for name, part in load_base(tiny.base)[0].named_modules() if isinstance(part, Linear | Conv1D)]
    assert modules == sorted(name for name in linear if name != "lm_head")


def test_named_modules_alone_are_trained(llama: Tiny) -> None:
    adapter = reserve_adapter("forgetful", str(llama.base))
    job = run(fresh_job(adapter, method=SHORT, target_modules=["q_proj", "layers.1.mlp.up_proj"], rank=2))
    assert (job.status, job.error) == ("succeeded", None)
    keys = load_safetensors(archive_of(versions(adapter)[0])[WEIGHTS_NAME])
    assert {key.split("layers.")[1].rpartition(".lora_")[0] for key in keys} == {
        "0.self_attn.q_proj", "1.self_attn.q_proj", "1.mlp.up_proj",
    }  # fmt: skip
    assert all(2 in value.shape for value in keys.values())


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head", "norm"])
def test_a_module_that_is_no_linear_layer_is_refused(llama: Tiny, module: str) -> None:
    adapter = reserve_adapter("forgetful", str(llama.base))
    job = run(fresh_job(adapter, method=SHORT, target_modules=["q_proj", module]))
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == "adapter_unusable"
    assert "linear" in job.error["message"]


def test_a_failed_job_leaves_no_version_and_can_be_retried(knows: Path) -> None:
    adapter = reserve_adapter("forgetful", "/nowhere")
    job = run(fresh_job(adapter, method=SHORT))
    assert (job.status, versions(adapter), head_of(adapter)) == ("failed", [], 0)
    with new_session() as session, session.begin():
        session.execute(update(BaseModelRow).values(directory=str(knows)))
        session.execute(transitions.retry(job.run_id))
        session.execute(transitions.follow(job.run_id, "queued", verdict=None, error=None))
    job = run(job)
    assert (job.status, job.result_version, head_of(adapter)) == ("succeeded", 1, 1)


def test_a_shut_gate_releases_nothing(knows: Path) -> None:
    adapter = reserve_adapter("forgetful", str(knows))
    job = run(fresh_job(adapter, SHUT, method=SHORT | {"learning_rate": 1.0}))
    assert (job.status, versions(adapter), head_of(adapter)) == ("gate_failed", [], 0)


def test_the_same_seed_begins_and_makes_the_same_adapter(llama: Tiny) -> None:
    made = []
    for name in ("one", "another"):
        adapter = reserve_adapter(name, str(llama.base))
        run(fresh_job(adapter, method=SHORT))
        made.append(archive_of(versions(adapter)[0])[WEIGHTS_NAME])
    assert made[0] == made[1]


def test_a_later_job_on_the_adapter_takes_its_head_and_is_not_measured_by_the_base(knows: Path) -> None:
    adapter = reserve_adapter("forgetful", str(knows))
    run(fresh_job(adapter, method=SHORT))
    job = run(add_job(adapter, FORGET_RECORDS[:2], RETAIN_RECORDS, method=METHOD, policy=OPEN))
    evaluation = evaluation_of(job)
    assert (job.status, job.result_version) == ("succeeded", 2)
    assert (evaluation.source_version, evaluation.reference) == (1, None)
    assert [version.status for version in versions(adapter)] == ["superseded", "ready"]


@pytest.mark.parametrize("name", ["recall", "rephrasing", "quantization", "history", "resurfacing", "sampling"])
def test_what_the_base_model_shows_loosens_no_limit(knows: Path, tmp_path: Path, name: ProbeName) -> None:
    base, _ = load_base(knows)
    source = tmp_path / "source"
    fresh_adapter(base, rank=2, alpha=4, seed=1).save_pretrained(str(source), save_embedding_layers=False)
    records = RECORDS | {"history/job_before": FORGET_RECORDS}
    audit = resolve.policy("audit", base_knows=True)
    policy = audit.model_copy(update={limit: 0.0 for limit, value in audit.limits(name) if value is not None})
    subject = FakeSubject(knows, {"source": source, "result": source}, records, policy=policy, base_knows=True)
    checks = PROBES[name].run(subject).checks
    assert checks
    assert not any(check.passed for check in checks)


def test_without_a_reference_attack_and_membership_are_shown_and_not_judged(knows: Path, tmp_path: Path) -> None:
    base, _ = load_base(knows)
    source = tmp_path / "source"
    fresh_adapter(base, rank=2, alpha=4, seed=1).save_pretrained(str(source), save_embedding_layers=False)
    policy = resolve.policy("audit", base_knows=True)
    records = RECORDS | {"holdout": HOLDOUT_RECORDS}
    subject = FakeSubject(knows, {"source": source, "result": source}, records, policy=policy, base_knows=True)
    for probe in (PROBES["membership"], PROBES["relearning"]):
        found = probe.run(subject)
        assert found.measures
        assert not found.checks
        assert not any("difference" in measure.name for measure in found.measures)
        assert "judged" in found.note
