"""The algebra of the combination, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.unlearning.adamw import BETA_2
from worker.unlearning.blur import ZERO_RATIO, Products, UsualLength, add_lower_, lower_weight, products, strength

WHOLE = [slice(0, 400)]
PARTS = [slice(0, 1), slice(1, 150), slice(150, 400)]
GAMMAS = st.sampled_from([0.0, 0.00125, 0.05, 1.0, 10.0])
SEEDS = st.integers(0, 10_000)
# ||g_f|| / ||g_r||: the method works at 1e-3 and below, and at the start the forget gradient dominates.
SCALES = st.sampled_from([1e-5, 1e-3, 1.0, 30.0, 1e4])
METRICS = st.booleans()


def gradients(seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """A lower and an upper gradient in conflict, (400,) each."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(400, generator=generator)
    lower = scale * (torch.randn(400, generator=generator) - 0.5 * shared)
    return lower, torch.randn(400, generator=generator) + 0.5 * shared


def metric_of(seed: int) -> Tensor:
    """Rescalings of AdamW differ by orders of magnitude."""
    return torch.randn(400, generator=torch.Generator().manual_seed(seed + 1)).mul(2).exp()


def combined(
    lower: Tensor,
    upper: Tensor,
    gamma: float,
    *,
    relative: bool = False,
    segments: list[slice] = WHOLE,
    metric: Tensor | None = None,
) -> tuple[Tensor, Products]:
    """The update direction u."""
    update = upper.clone()
    found = products(lower, upper, segments, metric)
    add_lower_(update, lower, lower_weight(found, gamma, at_first(found, relative=relative)), segments)
    return update, found


def at_first(found: Products, *, relative: bool) -> Tensor | None:
    """What a relative gamma goes by in the first step."""
    return UsualLength(len(found.product), torch.device("cpu")).squared(found) if relative else None


def inner(a: Tensor, b: Tensor, metric: Tensor | None = None) -> float:
    """<a, b> in the metric, in float64."""
    weighted = b.double() if metric is None else b.double() * metric.double()
    return float(a.double().dot(weighted))


@settings(deadline=None)
@given(seed=SEEDS, gamma=GAMMAS, scale=SCALES, in_metric=METRICS)
def test_forget_rate_is_gamma_whatever_the_retain_gradient(
    seed: int, gamma: float, scale: float, *, in_metric: bool
) -> None:
    lower, upper = gradients(seed, scale)
    metric = metric_of(seed) if in_metric else None
    update, _ = combined(lower, upper, gamma, metric=metric)
    lengths = [inner(vector, vector, metric) ** 0.5 for vector in (lower, upper)]
    rounding = 1e-5 * lengths[0] * (lengths[1] + gamma * lengths[0])
    assert abs(inner(update, lower, metric) - gamma * inner(lower, lower, metric)) <= rounding


@settings(deadline=None)
@given(seed=SEEDS, gamma=GAMMAS, scale=SCALES, in_metric=METRICS)
def test_square_of_the_update_is_that_of_the_identity(
    seed: int, gamma: float, scale: float, *, in_metric: bool
) -> None:
    lower, upper = gradients(seed, scale)
    metric = metric_of(seed) if in_metric else None
    update, found = combined(lower, upper, gamma, metric=metric)
    expected = gamma**2 * float(found.lower_squared) + float(found.rejected_squared)
    assert inner(update, update, metric) == pytest.approx(expected, rel=1e-5)


@settings(deadline=None)
@given(seed=SEEDS, scale=SCALES, relative=st.booleans(), in_metric=METRICS)
def test_gamma_zero_leaves_nothing_along_the_forget_gradient(
    seed: int, scale: float, *, relative: bool, in_metric: bool
) -> None:
    lower, upper = gradients(seed, scale)
    metric = metric_of(seed) if in_metric else None
    update, _ = combined(lower, upper, 0.0, relative=relative, metric=metric)
    lengths = inner(update, update, metric) * inner(lower, lower, metric)
    assert abs(inner(update, lower, metric)) <= 1e-5 * math.sqrt(lengths)


@settings(deadline=None)
@given(seed=SEEDS, factor=st.sampled_from([1e-3, 0.5, 8.0, 1e3]))
def test_scaling_the_forget_loss_changes_only_the_gamma_term(seed: int, factor: float) -> None:
    lower, upper = gradients(seed)
    gamma = 0.3
    once, _ = combined(lower, upper, gamma)
    scaled, _ = combined(factor * lower, upper, gamma)
    projected, projected_scaled = once - gamma * lower, scaled - gamma * factor * lower
    torch.testing.assert_close(projected_scaled, projected, rtol=0, atol=2e-5 * max(1.0, factor))


@settings(deadline=None)
@given(seed=SEEDS, gamma=GAMMAS, factor=st.sampled_from([1e-3, 0.5, 8.0, 1e3]), in_metric=METRICS)
def test_scaling_the_forget_loss_changes_nothing_with_a_relative_gamma(
    seed: int, gamma: float, factor: float, *, in_metric: bool
) -> None:
    lower, upper = gradients(seed)
    metric = metric_of(seed) if in_metric else None
    once, _ = combined(lower, upper, gamma, relative=True, metric=metric)
    scaled, _ = combined(factor * lower, upper, gamma, relative=True, metric=metric)
    torch.testing.assert_close(scaled, once, rtol=0, atol=1e-5 * (1 + gamma) * float(upper.norm()))


@settings(deadline=None)
@given(seed=SEEDS, gamma=st.sampled_from([0.05, 0.3, 2.0]), scale=SCALES)
def test_relative_gamma_is_the_length_of_forgetting_over_that_of_retaining(
    seed: int, gamma: float, scale: float
) -> None:
    lower, upper = gradients(seed, scale)
    update, _ = combined(lower, upper, gamma, relative=True)
    along = inner(update, lower) / inner(lower, lower) ** 0.5
    across = (inner(update, update) - along**2) ** 0.5
    assert along / across == pytest.approx(gamma, rel=1e-4)


def test_usual_length_remembers_as_adamw_does() -> None:
    squares = torch.tensor([[4.0, 1.0], [0.01, 9.0], [0.25, 0.0]])
    length, zero = UsualLength(2, torch.device("cpu")), torch.zeros(2)
    seen = [length.squared(Products(torch.ones(2), zero, square)) for square in squares]
    second = torch.zeros(2, dtype=torch.float64)
    for step, (square, found) in enumerate(zip(squares.double(), seen, strict=True), start=1):
        second = BETA_2 * second + (1 - BETA_2) * square
        torch.testing.assert_close(found.double(), second / (1 - BETA_2**step), rtol=1e-5, atol=1e-9)


def test_forgetting_keeps_its_length_when_retaining_has_little_left_to_do() -> None:
    lower, upper = gradients(0)
    length = UsualLength(1, torch.device("cpu"))
    for scale in (1.0, 1e-4):
        found = products(lower, scale * upper, WHOLE)
        weight = strength(found, 0.5, length.squared(found))
    first = products(lower, upper, WHOLE).rejected_squared
    assert float(weight) * float(lower.norm()) == pytest.approx(0.5 * float(first / 2) ** 0.5, rel=1e-3)


@settings(deadline=None)
@given(seed=SEEDS, alpha=st.sampled_from([2.0, 50.0, 800.0]))
def test_wmdp_form_is_alpha_times_blur_with_gamma_one_over_alpha(seed: int, alpha: float) -> None:
    lower, upper = gradients(seed)
    update, _ = combined(lower, upper, 1 / alpha)
    f, r = lower.double(), upper.double()
    wmdp = f + alpha * (r - (r.dot(f) / f.dot(f)) * f)
    torch.testing.assert_close(alpha * update.double(), wmdp, rtol=1e-4, atol=1e-5 * alpha)


@settings(deadline=None)
@given(seed=SEEDS, gamma=GAMMAS, relative=st.booleans(), in_metric=METRICS)
def test_every_segment_is_projected_on_its_own(seed: int, gamma: float, *, relative: bool, in_metric: bool) -> None:
    lower, upper = gradients(seed)
    metric = metric_of(seed) if in_metric else None
    update, found = combined(lower, upper, gamma, relative=relative, segments=PARTS, metric=metric)
    assert found.product.shape == (3,)
    for part in PARTS:
        inside = None if metric is None else metric[part]
        alone, _ = combined(lower[part], upper[part], gamma, relative=relative, segments=[slice(None)], metric=inside)
        torch.testing.assert_close(update[part], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_no_forget_gradient_leaves_the_retain_gradient(gamma: float, *, relative: bool) -> None:
    _, upper = gradients(0)
    update, found = combined(torch.zeros_like(upper), upper, gamma, relative=relative)
    assert torch.equal(update, upper)
    assert float(found.rejected_squared) == pytest.approx(float(upper.square().sum()), rel=1e-5)
    assert lower_weight(found, gamma, at_first(found, relative=relative)).tolist() == [0.0]


def test_no_forget_gradient_in_one_segment_leaves_the_others_projected() -> None:
    lower, upper = gradients(0)
    lower[PARTS[1]] = 0.0
    update, _ = combined(lower, upper, 0.0, segments=PARTS)
    assert torch.equal(update[PARTS[1]], upper[PARTS[1]])
    assert abs(inner(update[PARTS[2]], lower[PARTS[2]])) < 1e-3
    assert abs(inner(upper[PARTS[2]], lower[PARTS[2]])) > 1.0


@pytest.mark.parametrize("ratio", [1e-6, 1e-11])
def test_small_forget_gradient_is_still_projected_out(ratio: float) -> None:
    lower, upper = gradients(0)
    lower *= ratio**0.5 * upper.norm() / lower.norm()
    update, found = combined(lower, upper, 0.05)
    assert not bool(found.vanished)
    assert abs(float(torch.cosine_similarity(upper, lower, dim=0))) > 0.1
    assert abs(float(torch.cosine_similarity(update, lower, dim=0))) < 1e-3


def test_forget_gradient_of_rounding_size_counts_as_none() -> None:
    lower, upper = gradients(0)
    lower *= (0.1 * ZERO_RATIO) ** 0.5 * upper.norm() / lower.norm()
    update, found = combined(lower, upper, 1.0)
    assert bool(found.vanished)
    assert torch.equal(update, upper)


def test_zero_ratio_is_below_all_that_the_method_works_at() -> None:
    assert 1e-13 < ZERO_RATIO < 1e-11


@pytest.mark.parametrize("relative", [False, True])
def test_no_retain_gradient_leaves_gamma_times_the_forget_gradient(*, relative: bool) -> None:
    lower, upper = gradients(0)
    update, found = combined(lower, torch.zeros_like(upper), 0.25, relative=relative)
    expected = 0.0 if relative else 0.25  # relative to nothing
    torch.testing.assert_close(update, expected * lower)
    assert strength(found, 0.25, at_first(found, relative=relative)).tolist() == [expected]


@pytest.mark.parametrize("relative", [False, True])
def test_both_zero_is_a_standstill_without_nan(*, relative: bool) -> None:
    zero = torch.zeros(5)
    update, found = combined(zero, zero, 1.0, relative=relative, segments=[slice(0, 2), slice(2, 5)])
    assert torch.equal(update, zero)
    assert torch.equal(lower_weight(found, 1.0, at_first(found, relative=relative)), torch.zeros(2))
    assert torch.equal(found.rejected_squared, torch.zeros(2))


def test_parallel_gradients_leave_no_negative_square() -> None:
    for seed in range(20):
        lower, _ = gradients(seed)
        found = products(lower, -0.3 * lower, WHOLE)
        assert 0 <= float(found.rejected_squared) < 1e-5
        assert math.isfinite(float(lower_weight(found, 1.0, at_first(found, relative=True))))


def test_forget_gradient_is_left_as_it_is() -> None:
    lower, upper = gradients(1)
    before = lower.clone()
    combined(lower, upper, 1.0, metric=metric_of(1), segments=PARTS)
    assert torch.equal(lower, before)
