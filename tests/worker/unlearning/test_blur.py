"""The algebra of the combination, against float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.unlearning.blur import Combination, combine_

UNCLIPPED = 1e30
GAMMAS = st.sampled_from([0.0, 0.00125, 0.05, 1.0, 10.0])
SEEDS = st.integers(0, 10_000)
# ||g_f|| / ||g_r||: the method works at 1e-3 and below, and at the start the forget gradient dominates.
SCALES = st.sampled_from([1e-5, 1e-3, 1.0, 30.0, 1e4])


def gradients(seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(400, generator=generator)
    lower = scale * (torch.randn(400, generator=generator) - 0.5 * shared)
    return lower, torch.randn(400, generator=generator) + 0.5 * shared


def combined(lower: Tensor, upper: Tensor, gamma: float, max_norm: float = UNCLIPPED) -> tuple[Tensor, Combination]:
    update = upper.clone()
    return update, combine_(lower, update, gamma=gamma, max_norm=max_norm)


@settings(deadline=None)
@given(seed=SEEDS, gamma=GAMMAS, scale=SCALES)
def test_forget_rate_is_gamma_whatever_the_retain_gradient(seed: int, gamma: float, scale: float) -> None:
    lower, upper = gradients(seed, scale)
    update, _ = combined(lower, upper, gamma)
    f, u = lower.double(), update.double()
    rounding = 1e-5 * f.norm() * (upper.double().norm() + gamma * f.norm())
    assert abs(u.dot(f) - gamma * f.dot(f)) <= rounding


@settings(deadline=None)
@given(seed=SEEDS, gamma=GAMMAS, scale=SCALES)
def test_norm_from_the_identity_is_that_of_the_update(seed: int, gamma: float, scale: float) -> None:
    lower, upper = gradients(seed, scale)
    update, combination = combined(lower, upper, gamma)
    assert float(combination.norm) == pytest.approx(float(update.double().norm()), rel=1e-5)


@settings(deadline=None)
@given(seed=SEEDS, scale=SCALES)
def test_gamma_zero_leaves_nothing_along_the_forget_gradient(seed: int, scale: float) -> None:
    lower, upper = gradients(seed, scale)
    update, _ = combined(lower, upper, 0.0)
    assert abs(torch.cosine_similarity(update.double(), lower.double(), dim=0)) <= 1e-5


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
@given(seed=SEEDS, alpha=st.sampled_from([2.0, 50.0, 800.0]))
def test_wmdp_form_is_alpha_times_blur_with_gamma_one_over_alpha(seed: int, alpha: float) -> None:
    lower, upper = gradients(seed)
    update, _ = combined(lower, upper, 1 / alpha)
    f, r = lower.double(), upper.double()
    wmdp = f + alpha * (r - (r.dot(f) / f.dot(f)) * f)
    torch.testing.assert_close(alpha * update.double(), wmdp, rtol=1e-4, atol=1e-5 * alpha)


def test_swapped_roles_are_the_forget_upper_form() -> None:
    forget, retain = gradients(3)
    update, combination = combined(retain, forget, 0.7)
    f, r = forget.double(), retain.double()
    expected = f + (0.7 - f.dot(r) / r.dot(r)) * r
    torch.testing.assert_close(update.double(), expected, rtol=1e-5, atol=1e-5)
    assert float(combination.upper_squared) == pytest.approx(float(f.dot(f)), rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_no_forget_gradient_leaves_the_retain_gradient(gamma: float) -> None:
    _, upper = gradients(0)
    update, combination = combined(torch.zeros_like(upper), upper, gamma)
    assert torch.equal(update, upper)
    assert float(combination.norm) == pytest.approx(float(upper.norm()), rel=1e-6)
    assert float(combination.xi) == 0.0


def test_forget_gradient_of_rounding_size_counts_as_none() -> None:
    lower, upper = gradients(0)
    update, _ = combined(1e-7 * lower, upper, 1.0)
    assert torch.equal(update, upper)


def test_small_forget_gradient_still_counts() -> None:
    lower, upper = gradients(0, scale=1e-4)
    update, _ = combined(lower, upper, 0.05)
    assert abs(torch.cosine_similarity(upper, lower, dim=0)) > 0.1
    assert abs(torch.cosine_similarity(update, lower, dim=0)) < 1e-3


def test_no_retain_gradient_leaves_gamma_times_the_forget_gradient() -> None:
    lower, upper = gradients(0)
    update, combination = combined(lower, torch.zeros_like(upper), 0.25)
    torch.testing.assert_close(update, 0.25 * lower)
    assert float(combination.xi) == 0.25


def test_both_zero_is_a_standstill_without_nan() -> None:
    zero = torch.zeros(5)
    update, combination = combined(zero, zero, 1.0, max_norm=1.0)
    assert torch.equal(update, zero)
    assert all(math.isfinite(float(value)) for value in vars(combination).values())
    assert float(combination.clip) == 1.0


@settings(deadline=None)
@given(seed=SEEDS, gamma=GAMMAS, max_norm=st.sampled_from([1e-3, 1.0, 10.0, 1e6]))
def test_clipping_shortens_the_update_and_keeps_its_direction(seed: int, gamma: float, max_norm: float) -> None:
    lower, upper = gradients(seed)
    free, _ = combined(lower, upper, gamma)
    update, combination = combined(lower, upper, gamma, max_norm=max_norm)
    expected = free * min(1.0, max_norm / float(free.norm()))
    torch.testing.assert_close(update, expected, rtol=1e-4, atol=1e-6 * max_norm)
    assert (float(combination.clip) < 1.0) == (float(free.norm()) > max_norm)


def test_forget_gradient_is_left_as_it_is() -> None:
    lower, upper = gradients(1)
    before = lower.clone()
    combine_(lower, upper, gamma=1.0, max_norm=1.0)
    assert torch.equal(lower, before)
