"""The measuring of durability: what counts as beyond the control, what is missed, and what attackers do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from app.methods import DEFAULT_POLICY, METHOD_REQUEST
from benchmarks import attacks, worlds
from benchmarks.attacks import SIMULATED, UNSEEN, Attacks, _Sgd, worst_beyond
from benchmarks.durability import METHODS, line, missed, parse
from worker.evaluation.loaded import LoadedSubject
from worker.unlearning.models import load_base


def row(**changes: Any) -> dict[str, Any]:
    """One that meets every bar by a little."""
    excess = {"resurfacing": 0.01, "relearning": 0.02, "unseen": 0.02, "extraction_strength": 0.02}
    return {
        "dataset": "d", "method": "m", "steps": 1, "cpu_seconds": 1.0, "cost_vs_retrain": 0.5, "retain_ratio": 0.99,
        "forget_probability": 0.1, "extraction_strength": 0.0, "membership_auc": 0.45, "all_together": 0.1,
        "excess": excess | changes.pop("excess", {}), **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"excess": {"resurfacing": 0.03}}, "resurfacing by 0.010"),
        ({"excess": {"relearning": 0.05}}, "relearning by 0.020"),
        ({"excess": {"unseen": 0.05}}, "unseen attackers by 0.020"),
        ({"excess": {"extraction_strength": 0.05}}, "extraction strength by 0.020"),
        ({"retain_ratio": 0.97}, "retain by 0.010"),
        ({"membership_auc": 0.35}, "membership by 0.050"),
        ({"membership_auc": 0.65}, "membership by 0.050"),
    ],
)
def test_a_missed_bar_is_named_with_by_how_much_by_the_median(changes: dict[str, Any], name: str) -> None:
    bad = row(**changes)
    assert missed([row(), row(), bad]) == []
    assert missed([row(), bad, bad]) == [name]
    assert line([row()]).split()[:2] == ["d", "m"]


def test_the_worst_attacker_is_compared_with_the_same_attack_on_the_control() -> None:
    found = {"a": {"10": 0.5, "20": 0.6}, "b": {"10": 0.3, "20": 0.9}}
    control = {"a": {"10": 0.1, "20": 0.6}, "b": {"10": 0.2, "20": 0.8}}
    assert worst_beyond(found, control) == pytest.approx(0.4)


def test_the_sgd_attacker_is_torchs() -> None:
    ours, theirs = torch.ones(3), torch.ones(3).requires_grad_()
    optimizer, sgd = torch.optim.SGD([theirs], lr=0.05, momentum=0.9), _Sgd(ours)
    for step in range(4):
        theirs.grad = torch.tensor([1.0, -2.0, float(step)])
        sgd.observe(theirs.grad)
        sgd.step(theirs.grad, 0.05)
        optimizer.step()
    assert torch.allclose(ours, theirs)
    assert sgd.steps == 4


@pytest.mark.parametrize("attacker", [SIMULATED, *UNSEEN], ids=lambda attacker: attacker.name)
def test_an_attack_learns_and_leaves_the_model_as_it_was(attacker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "STEPS", (0, 4))
    world = worlds.demo()
    base, tokenizer = load_base(world.base)
    records = {"forget": world.forget[:8], "retain": world.retain[:8]}
    subject = LoadedSubject(
        base, tokenizer, {"source": world.adapter, "control": world.control, "result": Path()}, records,
        policy=DEFAULT_POLICY, method=METHOD_REQUEST.validate_python({}).resolve(8), seed=1, batch_size=64,
    )  # fmt: skip
    with worlds.threads(1):
        first, again = (Attacks(subject, 2e-3).relearning("control", attacker) for _ in range(2))
    assert first["4"] != first["0"]
    assert again == first


def test_every_method_is_one_that_the_service_takes() -> None:
    for knobs in METHODS.values():
        METHOD_REQUEST.validate_python(knobs)
    assert parse(["--quick"]).methods == ["stretch", "meta_cycles"]
