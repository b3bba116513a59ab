"""Innocent further training: what was only masked comes back, what was never learned does not."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from app.methods import DEFAULT_POLICY, POLICIES
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, blur_method
from tests.worker.evaluation.subjects import FakeSubject, make_subject
from worker.evaluation.battery import Found, NotApplicable
from worker.evaluation.battery.resurfacing import BEFORE, LIGHT, Resurfacing
from worker.evaluation.quick import shown
from worker.unlearning.likelihood import label_nll
from worker.unlearning.lora import WEIGHTS_FILE, adapter_state

AUDIT_POLICY = POLICIES["audit"]
METHOD = blur_method(learning_rate=5e-3, retain_batch_size=1)
UNJUDGED = DEFAULT_POLICY.model_copy(
    update={"max_resurfaced_probability": None, "max_resurfaced_extraction_strength": None}
)
JUDGED = AUDIT_POLICY.model_copy(update={"max_resurfaced_probability": 0.03})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters are trained once."""
    return tmp_path_factory.mktemp("resurfacing")


def masked(subject: FakeSubject, folder: Path) -> FakeSubject:
    """The same subject with a result that some steps up the loss of the forget set have made of the source."""
    where = folder / "masked"
    if not where.is_dir():
        shutil.copytree(subject.folders["source"], where)
        with subject.model("source") as model:
            climb(model, subject)
            lora: Any = model
            save_file(adapter_state(lora), where / WEIGHTS_FILE)
    subject.folders = {**subject.folders, "result": where}
    return subject


def climb(model: Any, subject: FakeSubject) -> None:
    factors = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(factors, lr=0.2)
    train = label_nll.__wrapped__  # type: ignore[attr-defined] # without its no_grad
    for _ in range(4):
        optimizer.zero_grad()
        loss = -torch.stack([nll.sum() for nll in train(model, subject.examples("forget"), 2, 8)]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(factors, 1.0)
        optimizer.step()


def values(found: Found, model: str) -> dict[str, float]:
    assert all(math.isfinite(measure.value) and measure.records == 4 for measure in found.measures)
    return {m.detail: m.value for m in found.measures if (m.name, m.model) == ("resurfaced_probability", model)}


def test_masked_records_come_back(llama: Tiny, folder: Path) -> None:
    found = Resurfacing().run(masked(make_subject(llama, folder, policy=JUDGED, method=METHOD), folder))
    seen = values(found, "result")
    assert list(seen) == [BEFORE, "learning rate 0.005, 12 steps", "learning rate 0.00125, 12 steps"]
    assert seen[BEFORE] < 0.03
    assert seen["learning rate 0.005, 12 steps"] > 2 * seen[BEFORE]
    check = found.checks[0]
    assert (check.name, check.passed) == ("resurfaced_probability", False)
    assert check.value == max(list(seen.values())[1:])
    assert check.limit == 0.03


def test_what_shows_without_training_is_not_judged_here(llama: Tiny, folder: Path) -> None:
    found = Resurfacing().run(make_subject(llama, folder, result="remembers", policy=JUDGED, method=METHOD))
    before, *after = values(found, "result").values()
    assert found.checks[0].value == max(after) < before


def test_records_that_were_never_learned_do_not(llama: Tiny, folder: Path) -> None:
    found = Resurfacing().run(make_subject(llama, folder, policy=JUDGED, method=METHOD))
    assert [check.passed for check in found.checks] == [True, True]
    assert values(found, "result") == values(found, "control")  # the result is the control
    assert max(values(found, "result").values()) < 0.03


def test_what_comes_back_in_the_reference_too_is_allowed(llama: Tiny, folder: Path) -> None:
    subject = masked(make_subject(llama, folder, policy=JUDGED, method=METHOD), folder)
    subject.folders = {**subject.folders, "control": subject.folders["result"]}
    check = Resurfacing().run(subject).checks[0]
    assert (check.passed, check.value) == (True, check.limit)


def test_base_model_is_trained_with_a_fresh_adapter(llama: Tiny, folder: Path) -> None:
    subject = make_subject(llama, folder, policy=JUDGED, method=METHOD, control=False)
    seen = values(Resurfacing().run(subject), "base")
    assert len(set(seen.values())) == 3  # it was trained
    with subject.fresh(subject.seed) as untrained:
        before = shown(untrained, subject.tokenizer, subject.examples("forget"), subject.batch_size)
    assert seen[BEFORE] == pytest.approx(before.probability)


def test_short_look_where_nothing_is_judged(llama: Tiny, folder: Path) -> None:
    found = Resurfacing().run(masked(make_subject(llama, folder, policy=UNJUDGED, method=METHOD), folder))
    assert not found.checks
    assert list(values(found, "result")) == [BEFORE, "learning rate 0.005, 4 steps"]
    assert {measure.model for measure in found.measures} == {"result"}


def test_short_look_ends_early_on_a_large_retain_set(llama: Tiny, folder: Path) -> None:
    records = {"forget": FORGET_RECORDS, "retain": RETAIN_RECORDS * 10}
    found = Resurfacing().run(make_subject(llama, folder, policy=UNJUDGED, method=METHOD, records=records))
    assert f"learning rate 0.005, {LIGHT[0].most_steps} steps" in values(found, "result")


def test_the_same_seed_gives_the_same_numbers(llama: Tiny, folder: Path) -> None:
    def run(seed: int) -> dict[str, float]:
        subject = make_subject(llama, folder, policy=JUDGED, method=METHOD, control=False, seed=seed)
        return values(Resurfacing().run(subject), "base")

    assert run(7) == run(7) != run(8)


def test_nothing_to_train_on(llama: Tiny, folder: Path) -> None:
    subject = make_subject(llama, folder, records={"forget": FORGET_RECORDS, "retain": []})
    with pytest.raises(NotApplicable, match="kept record"):
        Resurfacing().run(subject)
