"""Every loss against its formula, written out by hand in float64, and what its gradient is known to be."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.methods import FORGET_LOSSES, RETAIN_LOSSES, NpoLoss, RmuLoss
from worker.unlearning import losses
from worker.unlearning.losses import Loss, Rows, StepSize, build_loss

LOSSES = FORGET_LOSSES | RETAIN_LOSSES
VOCABULARY = 7
LENGTHS = (3, 1, 4, 2)
LABELS = sum(LENGTHS)
SEEDS = st.integers(0, 10_000)


def loss_of(kind: str, **knobs: Any) -> Loss:
    return build_loss(LOSSES[kind].model_validate(knobs))  # type: ignore[arg-type]


def case(seed: int) -> tuple[Tensor, Tensor, Tensor, Rows]:
    """Logits, labels, source logits, and four sequences."""
    generator = torch.Generator().manual_seed(seed)
    logits, source = (3 * torch.randn(LABELS, VOCABULARY, generator=generator) for _ in range(2))
    labels = torch.randint(VOCABULARY, (LABELS,), generator=generator)
    of = torch.arange(4).repeat_interleave(torch.tensor(LENGTHS))
    nll = [sum_nll(source, labels, of, row) for row in range(4)]
    return logits, labels, source, Rows(of, torch.tensor(LENGTHS).float(), torch.tensor(nll))


def log_p(logits: Tensor, token: int) -> float:
    """log of a softmax, in float64."""
    row = [float(z) for z in logits.detach()]
    return row[token] - math.log(sum(math.exp(z) for z in row))


def sum_nll(logits: Tensor, labels: Tensor, of: Tensor, row: int) -> float:
    return -sum(log_p(logits[i], int(labels[i])) for i in range(LABELS) if int(of[i]) == row)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def runner_up(logits: Tensor, label: int) -> float:
    return max(math.exp(log_p(logits, v)) for v in range(VOCABULARY) if v != label)


def to_teacher(logits: Tensor, source: Tensor, label: int, beta: float) -> float:
    lowered = source.clone()
    lowered[label] -= beta
    return -sum(math.exp(log_p(lowered, v)) * log_p(logits, v) for v in range(VOCABULARY))


def divergence(logits: Tensor, source: Tensor) -> float:
    return sum(math.exp(log_p(source, v)) * (log_p(source, v) - log_p(logits, v)) for v in range(VOCABULARY))


KNOBS: dict[str, dict[str, float]] = {
    "npo": {"beta": 0.03},
    "simnpo": {"beta": 2.5},
    "idk_dpo": {"beta": 0.1},
    "undial": {"beta": 10.0},
    "wga": {"beta": 1.0},
}


def by_hand(kind: str, logits: Tensor, labels: Tensor, source: Tensor, rows: Rows) -> float:
    """The loss of one step that holds just these sequences."""
    of = rows.of_label
    now, was = ([sum_nll(z, labels, of, row) for row in range(4)] for z in (logits, source))
    p = [math.exp(log_p(logits[i], int(labels[i]))) for i in range(LABELS)]
    known = [(logits[i], source[i], int(labels[i])) for i in range(LABELS)]
    pairs = ((was[0] - now[0], was[1] - now[1]), (was[2] - now[2], was[3] - now[3]))
    values = {
        "npo": [-(2 / 0.03) * log_sigmoid(0.03 * (a - b)) for a, b in zip(now, was, strict=True)],
        "simnpo": [-(2 / 2.5) * log_sigmoid(2.5 * a / n) for a, n in zip(now, LENGTHS, strict=True)],
        "idk_dpo": [-(2 / 0.1) * log_sigmoid(0.1 * (refusal - answer)) for answer, refusal in pairs],
        "ihl": [1 + p[i] - runner_up(logits[i], int(labels[i])) for i in range(LABELS)],
        "ceu": [-math.log(1 - p[i]) for i in range(LABELS)],
        "undial": [to_teacher(z, s, y, 10.0) for z, s, y in known],
        "wga": [p[i] * math.log(p[i]) for i in range(LABELS)],
        "ga": [math.log(p[i]) for i in range(LABELS)],
        "nll": [-math.log(p[i]) for i in range(LABELS)],
        "kl": [divergence(z, s) for z, s, _ in known],
    }[kind]
    return sum(values) / len(values)


@pytest.mark.parametrize("kind", sorted(set(LOSSES) - {"rmu"}))
@settings(deadline=None, max_examples=25)
@given(seed=SEEDS)
def test_loss_is_its_formula(kind: str, seed: int) -> None:
    logits, labels, source, rows = case(seed)
    loss = loss_of(kind, **KNOBS.get(kind, {}))
    values = loss.token_values(logits, labels, source)
    assert values.shape == (LABELS,)
    assert values.dtype == torch.float32
    records = 2 if loss.needs_refusals else 4
    total = float(loss.total(values, rows, StepSize(records, LABELS)))
    assert total == pytest.approx(by_hand(kind, logits, labels, source, rows), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", LOSSES)
def test_numbers_of_the_whole_step_come_from_outside(kind: str) -> None:
    """A micro-batch that is half of its step weighs half."""
    logits, labels, source, rows = case(0)
    loss = loss_of(kind)
    loss.aim(logits, 0)
    values = loss.token_values(logits, labels, source)
    alone = loss.total(values, rows, StepSize(2, LABELS))
    half = loss.total(values, rows, StepSize(4, 2 * LABELS))
    torch.testing.assert_close(half, alone / 2)


def test_rows_are_summed_apart_and_an_empty_row_is_zero() -> None:
    rows = Rows(torch.tensor([0, 2, 2]), torch.ones(4), torch.zeros(4))
    assert rows.sums(torch.tensor([1.0, 2.0, 4.0])).tolist() == [1.0, 0.0, 6.0, 0.0]


# The registry.


def test_every_schema_has_one_file_and_every_file_a_schema() -> None:
    files = {path.stem for path in Path(losses.__path__[0]).glob("*.py")} - {"__init__", "base"}
    assert files == set(LOSSES)


@pytest.mark.parametrize("kind", LOSSES)
def test_file_holds_the_loss_that_its_name_says(kind: str) -> None:
    built = loss_of(kind)
    assert type(built).__module__ == f"worker.unlearning.losses.{kind}"
    assert type(built).__name__ == LOSSES[kind].__name__.removesuffix("Loss")


@pytest.mark.parametrize("kind", LOSSES)
def test_every_knob_reaches_the_loss(kind: str) -> None:
    knobs = LOSSES[kind]()
    built = loss_of(kind)
    for name in set(type(knobs).model_fields) - {"type"}:
        assert getattr(built, name) == getattr(knobs, name)


def test_file_with_two_losses_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module("worker.unlearning.losses.npo")
    second = type("Other", (Loss,), {"__module__": module.__name__})
    monkeypatch.setattr(module, "Other", second, raising=False)
    with pytest.raises(ValueError, match="too many values"):
        build_loss(NpoLoss())


# How strongly each pushes.


def peaked(p: float) -> tuple[Tensor, Tensor]:
    """Logits of three tokens: the label with probability p, the others with half of the rest each."""
    rest = (1 - p) / 2
    return torch.tensor([[p, rest, rest]], dtype=torch.float64).log().float().requires_grad_(), torch.tensor([0])


@pytest.mark.parametrize(
    ("kind", "knobs", "pushes"),
    [
        ("ga", {}, (0.01, 0.10, 0.50)),
        ("npo", {"beta": 0.1}, (0.01, 0.10, 0.48)),
        ("simnpo", {"beta": 4.5}, (0.01, 0.077, 0.042)),
        ("ihl", {}, (0.015, 0.135, 0.375)),
        ("ceu", {}, (0.99, 0.90, 0.50)),
        ("undial", {}, (0.986, 0.90, 0.50)),
        ("wga", {}, (0.01, 0.09, 0.25)),
    ],
)
def test_push_on_the_answer_token_is_that_of_the_table(kind: str, knobs: dict[str, Any], pushes: list[float]) -> None:
    """Positive pushes the logit down. NPO's source is sure of the token."""
    for p, push in zip((0.99, 0.9, 0.5), pushes, strict=True):
        logits, labels = peaked(p)
        rows = Rows(torch.tensor([0]), torch.ones(1), torch.zeros(1))
        loss = loss_of(kind, **knobs)
        values = loss.token_values(logits, labels, logits.detach())
        (slope,) = torch.autograd.grad(loss.total(values, rows, StepSize(1, 1)), logits)
        assert float(slope[0, 0]) == pytest.approx(push, rel=0.03, abs=5e-4)
        assert float(slope.sum()) == pytest.approx(0, abs=1e-5), "a softmax ignores a shift of all logits"


@settings(deadline=None)
@given(seed=SEEDS)
def test_ceu_has_the_gradient_of_the_cross_entropy_without_the_answer(seed: int) -> None:
    logits, labels, _, _ = case(seed)
    logits.requires_grad_()
    (found,) = torch.autograd.grad(loss_of("ceu").token_values(logits, labels, None).sum(), logits)
    target = logits.detach().scatter(1, labels[:, None], float("-inf")).softmax(-1)
    expected = logits.detach().softmax(-1) - target  # d cross-entropy / d logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_ceu_stays_exact_where_the_answer_is_almost_sure() -> None:
    logits, labels = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True), torch.tensor([0])
    value = loss_of("ceu").token_values(logits, labels, None)
    assert float(value.detach()) == pytest.approx(40 - math.log(2), rel=1e-6)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(slope, torch.tensor([[1.0, -0.5, -0.5]]))


def test_ceu_stays_exact_where_the_answer_is_almost_impossible() -> None:
    logits, labels = torch.tensor([[-20.0, 0.0, 1.0]], requires_grad=True), torch.tensor([0])
    value = loss_of("ceu").token_values(logits, labels, None)
    p, q = (math.exp(-20) / (math.exp(-20) + 1 + math.e), 1 / (1 + math.e))
    assert float(value.detach()) == pytest.approx(p, rel=1e-5)
    (slope,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(slope, torch.tensor([[p, -p * q, -p * (1 - q)]]), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("beta", "start"), [(0.1, 13.863), (0.04, 34.657), (0.005, 277.26)])
def test_npo_starts_as_gradient_ascent_at_two_over_beta_log_two(beta: float, start: float) -> None:
    nll = torch.tensor([3.0, 700.0, 40.0], requires_grad=True)
    rows = Rows(torch.arange(3), torch.ones(3), nll.detach().clone())
    total = loss_of("npo", beta=beta).total(nll, rows, StepSize(3, 3))
    assert float(total.detach()) == pytest.approx(start, rel=1e-4)
    (slope,) = torch.autograd.grad(total, nll)
    torch.testing.assert_close(slope, torch.full((3,), -1 / 3))


@settings(deadline=None)
@given(gap=st.floats(-200, 200), beta=st.sampled_from([0.005, 0.03, 0.1, 1.0]))
def test_npo_gradient_weighs_a_sequence_by_twice_the_sigmoid(gap: float, beta: float) -> None:
    nll = torch.tensor([50.0 + gap], requires_grad=True)
    rows = Rows(torch.tensor([0]), torch.ones(1), torch.tensor([50.0]))
    (slope,) = torch.autograd.grad(loss_of("npo", beta=beta).total(nll, rows, StepSize(1, 1)), nll)
    weight = 2.0 * torch.sigmoid(torch.tensor(-beta * gap, dtype=torch.float64))
    assert float(-slope) == pytest.approx(float(weight), rel=1e-3, abs=1e-6)


def test_npo_is_per_sequence_and_not_of_the_batch_mean() -> None:
    nll, before = torch.tensor([10.0, 90.0]), torch.tensor([20.0, 30.0])
    loss = loss_of("npo", beta=0.1)
    together = loss.total(nll, Rows(torch.arange(2), torch.ones(2), before), StepSize(2, 2))
    one = Rows(torch.tensor([0]), torch.ones(1), before[:1])
    other = Rows(torch.tensor([0]), torch.ones(1), before[1:])
    alone = loss.total(nll[:1], one, StepSize(2, 2)) + loss.total(nll[1:], other, StepSize(2, 2))
    torch.testing.assert_close(together, alone)
    mean = Rows(torch.tensor([0]), torch.ones(1), before.mean()[None])
    assert abs(float(together - loss.total(nll.mean()[None], mean, StepSize(1, 1)))) > 0.5


def test_npo_per_token_forgets_a_long_sequence_as_far_as_a_short_one() -> None:
    """A nat per token more, in one token and in ten."""
    of = torch.tensor([0] + [1] * 10)
    rows = Rows(of, torch.tensor([1.0, 10.0]), torch.tensor([2.0, 20.0]))
    nll = torch.full((11,), 3.0, requires_grad=True)
    (slope,) = torch.autograd.grad(loss_of("npo", beta=1.0, per_token=True).total(nll, rows, StepSize(2, 11)), nll)
    assert float(slope[0]) == pytest.approx(float(slope[1:].sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["kl", "undial"])
def test_divergence_is_least_at_its_teacher(kind: str) -> None:
    _, labels, source, _ = case(3)
    teacher = source.clone()
    if kind == "undial":
        teacher[range(LABELS), labels] -= 10.0
    teacher.requires_grad_()
    values = loss_of(kind).token_values(teacher, labels, source)
    (slope,) = torch.autograd.grad(values.sum(), teacher)
    assert float(slope.abs().max()) < 1e-5
    if kind == "kl":
        assert float(values.detach().abs().max()) < 1e-6
    away = loss_of(kind).token_values(teacher.detach() + torch.randn_like(teacher), labels, source)
    assert bool((away > values.detach()).all())


def test_undial_leaves_the_source_logits_as_they_are() -> None:
    logits, labels, source, _ = case(3)
    before = source.clone()
    loss_of("undial").token_values(logits, labels, source)
    assert torch.equal(source, before)


@pytest.mark.parametrize("kind", ["kl", "undial"])
def test_loss_that_compares_says_so_when_there_is_nothing_to_compare_with(kind: str) -> None:
    logits, labels, _, _ = case(3)
    assert loss_of(kind).needs_source_logits
    with pytest.raises(ValueError, match="needs the logits of the source"):
        loss_of(kind).token_values(logits, labels, None)


def test_wga_holds_its_weight_fixed() -> None:
    logits, labels = peaked(0.5)
    (slope,) = torch.autograd.grad(loss_of("wga", beta=2.0).token_values(logits, labels, None).sum(), logits)
    assert float(slope[0, 0]) == pytest.approx(0.25 * 0.5, rel=1e-4)  # p^2 (1 - p)


def test_ihl_stays_within_its_range() -> None:
    sure, other = torch.tensor([[30.0, 0.0, 0.0]]), torch.tensor([[0.0, 30.0, 0.0]])
    label = torch.tensor([0])
    assert float(loss_of("ihl").token_values(sure, label, None)) == pytest.approx(2.0, abs=1e-5)
    assert float(loss_of("ihl").token_values(other, label, None)) == pytest.approx(0.0, abs=1e-5)


def test_refusal_that_gains_on_the_answer_lowers_idk_dpo() -> None:
    rows = Rows(torch.arange(2), torch.ones(2), torch.tensor([5.0, 5.0]))
    nll = torch.tensor([5.0, 5.0], requires_grad=True)  # an answer, then a refusal
    (slope,) = torch.autograd.grad(loss_of("idk_dpo", beta=0.1).total(nll, rows, StepSize(1, 2)), nll)
    assert slope.tolist() == pytest.approx([-1.0, 1.0], rel=1e-5)


# RMU.


def test_rmu_is_the_mean_square_to_a_target_of_the_states_own_length() -> None:
    states = torch.randn(20, 16, generator=torch.Generator().manual_seed(0))
    loss = build_loss(RmuLoss(steering=3.0))
    loss.aim(states, seed=4)
    (target,) = {tuple(loss.target.tolist())}  # type: ignore[attr-defined]
    c = torch.tensor(target)
    assert float(c.norm()) == pytest.approx(3.0 * float(states.norm(dim=-1).mean()), rel=1e-5)
    assert bool((c >= 0).all()), "of the positive orthant"
    values = loss.token_values(states, torch.zeros(20, dtype=torch.int64), None)
    torch.testing.assert_close(values, (states - c).square().sum(-1) / 16)


def test_rmu_target_is_drawn_by_the_seed() -> None:
    states = torch.ones(2, 16)
    targets = []
    for seed in (4, 4, 5):
        torch.rand(3)  # whatever else was drawn before
        loss: Any = build_loss(RmuLoss())
        loss.aim(states, seed=seed)
        targets.append(loss.target)
    assert torch.equal(targets[0], targets[1])
    assert not torch.allclose(targets[0], targets[2], rtol=0.1)


def test_rmu_without_a_target_is_refused() -> None:
    with pytest.raises(ValueError, match="no target"):
        build_loss(RmuLoss()).token_values(torch.ones(2, 4), torch.zeros(2, dtype=torch.int64), None)


@pytest.mark.parametrize(("depth", "layers", "place"), [(0.5, 2, 1), (0.5, 32, 16), (1.0, 32, 32), (0.01, 32, 1)])
def test_rmu_takes_the_layer_at_its_share_of_the_depth(depth: float, layers: int, place: int) -> None:
    assert build_loss(RmuLoss(depth=depth)).place(layers) == place
