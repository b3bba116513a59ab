"""An attacker who holds half of the records: what he gets back of the other half beyond what anyone would."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.methods import DEFAULT_POLICY, POLICIES
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, blur_method
from tests.worker.evaluation.subjects import make_subject
from tests.worker.evaluation.test_resurfacing import masked
from worker.evaluation.battery import Found, NotApplicable, relearning
from worker.evaluation.battery.relearning import ATTACKERS, Relearning, halves
from worker.evaluation.quick import Shown, shown
from worker.evaluation.tuning import Tuner
from worker.unlearning.encoding import Example

AUDIT_POLICY = POLICIES["audit"]
STEPS = (0, 10, 20)  # more would show nothing else on a tiny model
METHOD = blur_method(learning_rate=5e-3, forget_batch_size=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters are trained once."""
    return tmp_path_factory.mktemp("relearning")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relearning, "STEPS", STEPS)


def values(found: Found, model: str) -> dict[str, float]:
    assert all(math.isfinite(measure.value) and measure.records == 2 for measure in found.measures)
    return {m.detail: m.value for m in found.measures if (m.name, m.model) == ("relearned_probability", model)}


def subject_of(llama: Tiny, folder: Path, **fields: Any) -> Any:
    return make_subject(llama, folder, **{"policy": AUDIT_POLICY, "method": METHOD} | fields)


def test_half_of_masked_records_brings_back_the_other(llama: Tiny, folder: Path) -> None:
    found = Relearning().run(masked(subject_of(llama, folder), folder))
    seen, never = values(found, "result"), values(found, "control")
    excess = {detail: seen[detail] - never[detail] for detail in seen if not detail.endswith(" 0 steps")}
    (check,) = found.checks
    assert check.value == max(excess.values())
    assert check.description.endswith(max(excess, key=excess.__getitem__))
    assert check.value > 0.02
    assert check.limit == AUDIT_POLICY.max_relearned_excess


def test_nothing_comes_back_that_the_control_would_not_learn(llama: Tiny, folder: Path) -> None:
    found = Relearning().run(subject_of(llama, folder))
    (check,) = found.checks
    assert (check.value, check.passed) == (0.0, True)  # the result is the control
    assert set(values(found, "result")) == {f"{attacker}, {step} steps" for attacker in ATTACKERS for step in STEPS}


def test_source_itself_fails(llama: Tiny, folder: Path) -> None:
    found = Relearning().run(subject_of(llama, folder, result="remembers"))
    seen, never = values(found, "result"), values(found, "control")
    (check,) = found.checks
    assert not check.passed
    # Before the first step the source stands out most, but that is for recall to judge.
    assert check.value == max(seen[detail] - never[detail] for detail in seen if not detail.endswith(" 0 steps"))
    assert check.value < seen[f"{ATTACKERS[0]}, 0 steps"] - never[f"{ATTACKERS[0]}, 0 steps"]


def test_what_is_measured_was_not_trained_on(llama: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, measured = set[int](), set[int]()

    def tuner(model: Any, tokenizer: Any, examples: list[Example], tuning: Any) -> Tuner:
        trained.update(example.record for example in examples)
        return Tuner(model, tokenizer, examples, tuning)

    def look(model: Any, tokenizer: Any, examples: list[Example], batch_size: int) -> Shown:
        measured.update(example.record for example in examples)
        return shown(model, tokenizer, examples, batch_size)

    monkeypatch.setattr(relearning, "Tuner", tuner)
    monkeypatch.setattr(relearning, "shown", look)
    monkeypatch.setattr(relearning, "STEPS", (0, 1))
    Relearning().run(subject_of(llama, folder))
    assert (len(trained), len(measured), trained & measured) == (2, 2, set())


def test_without_a_control_only_a_new_adapter_is_compared(llama: Tiny, folder: Path) -> None:
    found = Relearning().run(subject_of(llama, folder, control=False))
    base, result = values(found, "base"), values(found, "result")
    assert set(base) == {f"{ATTACKERS[1]}, {step} steps" for step in STEPS}
    assert len(set(base.values())) == len(STEPS)  # it was trained
    (check,) = found.checks
    assert check.value == max(result[detail] - base[detail] for detail in base if not detail.endswith(" 0 steps"))
    assert "not judged" in found.note


def test_attackers_start_alike_and_train_differently(llama: Tiny, folder: Path) -> None:
    seen = values(Relearning().run(subject_of(llama, folder, result="remembers")), "result")
    assert seen[f"{ATTACKERS[0]}, 0 steps"] == pytest.approx(seen[f"{ATTACKERS[1]}, 0 steps"], rel=1e-3)
    assert seen[f"{ATTACKERS[0]}, 20 steps"] != pytest.approx(seen[f"{ATTACKERS[1]}, 20 steps"], rel=1e-3)


def test_measured_where_no_limit_is_set(llama: Tiny, folder: Path) -> None:
    found = Relearning().run(subject_of(llama, folder, policy=DEFAULT_POLICY))
    assert not found.checks
    assert found.measures


def test_one_record_has_no_halves(llama: Tiny, folder: Path, tmp_path: Path) -> None:
    records = {"forget": FORGET_RECORDS[:1], "retain": RETAIN_RECORDS}
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(NotApplicable, match="halves"):
        Relearning().run(subject_of(llama, tmp_path, records=records))


@given(windows=st.lists(st.integers(1, 3), min_size=2, max_size=12), seed=st.integers(0, 2**31))
def test_halves_share_no_record(windows: list[int], seed: int) -> None:
    examples = [Example(record, (1, 2), 1, "", "") for record, count in enumerate(windows) for _ in range(count)]
    known, asked = halves(examples, seed)
    records = [{example.record for example in half} for half in (known, asked)]
    assert not records[0] & records[1]
    assert len(known) + len(asked) == len(examples)
    assert 0 <= len(records[1]) - len(records[0]) <= 1
    assert halves(examples, seed) == (known, asked)


def test_another_seed_draws_other_halves() -> None:
    examples = [Example(record, (1, 2), 1, "", "") for record in range(40)]
    assert halves(examples, 0) != halves(examples, 1)
