"""Rounding as a probe: what comes back is seen, and nothing of it stays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from app.methods import DEFAULT_POLICY
from tests.worker.conftest import Tiny
from tests.worker.evaluation.subjects import FakeSubject, make_subject
from worker.evaluation.battery import Found, NotApplicable, quantization
from worker.evaluation.battery.quantization import VARIANTS, Quantization
from worker.evaluation.quick import shown
from worker.evaluation.rounding import rounded

UNJUDGED = DEFAULT_POLICY.model_copy(
    update={"max_quantized_probability": None, "max_quantized_extraction_strength": None}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters are trained once."""
    return tmp_path_factory.mktemp("quantization")


def values(found: Found, name: str, model: str) -> dict[str, float]:
    return {m.detail: m.value for m in found.measures if (m.name, m.model) == (name, model)}


def test_result_that_forgot_passes_in_every_way_of_rounding(llama: Tiny, folder: Path) -> None:
    found = Quantization().run(make_subject(llama, folder))
    assert [(check.name, check.passed) for check in found.checks] == [
        ("quantized_probability", True),
        ("quantized_extraction_strength", True),
    ]
    for name in ("quantized_probability", "quantized_extraction_strength", "quantized_retain_probability"):
        assert set(values(found, name, "result")) == {variant.title for variant in VARIANTS}
    assert all(math.isfinite(measure.value) and measure.records == 4 for measure in found.measures)
    kept = values(found, "quantized_retain_probability", "result")
    assert kept["merged, then int8"] > 0.7 > kept["merged, then int4"] > 0.3  # a random model does not round well


def test_result_that_remembers_fails_by_the_worst_way(llama: Tiny, folder: Path) -> None:
    found = Quantization().run(make_subject(llama, folder, result="remembers"))
    seen = values(found, "quantized_probability", "result")
    check = found.checks[0]
    assert not check.passed
    assert check.value == max(seen.values())
    assert check.description.endswith(max(seen, key=seen.__getitem__))


def test_what_the_base_shows_in_the_same_way_is_allowed_and_no_control(llama: Tiny, folder: Path) -> None:
    subject = make_subject(llama, folder, result="remembers")
    subject.folders = {**subject.folders, "control": subject.folders["source"]}
    subject.policy = subject.policy.model_copy(update={"max_quantized_probability": 0.0})
    found = Quantization().run(subject)
    check = next(check for check in found.checks if check.name == "quantized_probability")
    assert not check.passed
    assert check.limit == values(found, "quantized_probability", "base")[check.description.rsplit(": ", 1)[1]]


def test_base_model_as_reference_is_rounded_without_an_adapter(llama: Tiny, folder: Path) -> None:
    found = Quantization().run(make_subject(llama, folder, control=False))
    base = values(found, "quantized_probability", "base")
    assert base["merged, then int4"] == base["adapter on int4 base"]
    assert base["adapter on int4 base"] != base["adapter on int8 base"]


def test_numbers_are_those_of_a_model_with_rounded_weights(llama: Tiny, folder: Path) -> None:
    subject = make_subject(llama, folder, result="remembers")
    with subject.model("result") as model:
        merged: Any = model
        merged = merged.merge_and_unload()
        for name, layer in merged.named_modules():
            if isinstance(layer, nn.Linear) and name != "lm_head":
                layer.weight.data = rounded(layer.weight.data, "int4")
        expected = shown(merged, subject.tokenizer, subject.examples("forget"), 8)
    found = values(Quantization().run(subject), "quantized_probability", "result")
    assert found["merged, then int4"] == pytest.approx(expected.probability, rel=1e-3)


def test_measured_where_no_limit_is_set(llama: Tiny, folder: Path) -> None:
    found = Quantization().run(make_subject(llama, folder, policy=UNJUDGED))
    assert not found.checks
    assert found.measures


class OneModel(FakeSubject):
    """Lends one and the same base model again and again, as the service's subject does."""

    def _load(self, folder: Path) -> Any:
        if not hasattr(self, "held"):
            self.held = super()._load(folder)
        return self.held


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before(llama: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
    plain = make_subject(llama, folder)
    subject = OneModel(plain.base, plain.folders, plain.records)
    with subject.model("result") as model:
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
    if fails:
        monkeypatch.setattr(quantization, "all_shown", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            Quantization().run(subject)
    else:
        Quantization().run(subject)
    with subject.model("result") as model:
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
        assert not any("forward" in vars(module) for module in model.modules())


def test_base_in_four_bits_is_not_tested(llama: Tiny, folder: Path) -> None:
    plain = make_subject(llama, folder)
    subject = OneModel(plain.base, plain.folders, plain.records)
    with subject.model("result") as model:
        layer: Any = next(m for m in model.modules() if isinstance(m, nn.Linear))
        layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(NotApplicable, match="few bits"):
        Quantization().run(subject)
