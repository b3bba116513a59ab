"""What becomes of two gradients, and of the step along it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.methods import METHOD, UNLEARNING_REQUESTS, BlurMethod, ForgetUpperMethod, PduMethod
from tests.worker.conftest import Tiny, blur_method
from tests.worker.unlearning.engine import load
from tests.worker.unlearning.test_blur import PARTS, WHOLE, gradients, inner
from worker.unlearning.adamw import AdamW
from worker.unlearning.combiners import Blur, ForgetUpper, Pdu, WeightedSum, build_combiner, clip_
from worker.unlearning.factors import Factors

NO_LOSS = torch.tensor(0.0)
CPU = torch.device("cpu")
SEEDS = st.integers(0, 10_000)


def optimizer_of(seed: int) -> AdamW:
    """An optimizer in the middle of a run, but without momentum."""
    generator = torch.Generator().manual_seed(seed + 2)
    optimizer = AdamW(torch.zeros(400), weight_decay=0.0)
    optimizer.steps = int(torch.randint(0, 2000, (1,), generator=generator))
    spread = torch.randn(400, generator=generator).mul(3).exp()
    correction: float = 1 - 0.999**optimizer.steps
    optimizer.second.copy_(correction * spread * torch.rand(1, generator=generator))
    return optimizer


def change(seed: int, segments: list[slice], **knobs: Any) -> tuple[float, float]:
    """By how much AdamW's step changes the forget loss to first order, and the most that it could."""
    forget, retain = gradients(seed, scale=0.2)
    optimizer = optimizer_of(seed)
    method = blur_method(gamma=0.01, **knobs)
    combined = Blur(method, segments, CPU).combine_(forget, retain.clone(), NO_LOSS, optimizer)
    clip_(combined.update, method.max_grad_norm)
    if combined.rescaling is None:
        optimizer.observe(combined.update)
    move = optimizer.step(combined.update, 1e-3, combined.rescaling)
    return inner(move, forget), float(move.norm() * forget.norm())


@settings(deadline=None, max_examples=200)
@given(
    seed=SEEDS,
    scale=st.sampled_from(["relative", "absolute"]),
    max_norm=st.sampled_from([1e-3, 1.0, 1e6]),
    segments=st.sampled_from([WHOLE, PARTS]),
)
def test_preconditioned_step_never_raises_the_forget_loss(
    seed: int, scale: str, max_norm: float, segments: list[slice]
) -> None:
    found, most = change(seed, segments, projection="preconditioned", gamma_scale=scale, max_grad_norm=max_norm)
    assert found <= 1e-5 * most


def test_raw_projection_does_raise_the_forget_loss_now_and_then() -> None:
    """Or the test above would pass whatever the projection did."""
    raised = sum(found > 1e-2 * most for found, most in (change(seed, WHOLE) for seed in range(100)))
    assert raised > 10


@pytest.mark.parametrize("segments", [WHOLE, PARTS])
def test_preconditioned_rate_is_gamma_in_the_metric_of_the_step(segments: list[slice]) -> None:
    forget, retain = gradients(1)
    optimizer = optimizer_of(1)
    method = blur_method(projection="preconditioned", gamma=0.7, max_grad_norm=1e-2)
    combined = Blur(method, segments, CPU).combine_(forget, retain, NO_LOSS, optimizer)
    assert combined.rescaling is not None
    assert combined.update is retain
    assert torch.equal(combined.rescaling, optimizer.rescaling()), "the very step's"
    for part in segments:
        metric = combined.rescaling[part]
        rate = inner(combined.update[part], forget[part], metric) / inner(forget[part], forget[part], metric)
        assert rate == pytest.approx(0.7, rel=1e-4)


def test_preconditioned_second_moment_is_that_of_a_clipped_update() -> None:
    forget, retain = gradients(1)
    optimizer = AdamW(torch.zeros(400), 0.0)
    method = blur_method(projection="preconditioned", max_grad_norm=1e-2)
    Blur(method, WHOLE, CPU).combine_(forget, retain, NO_LOSS, optimizer)
    assert optimizer.steps == 1
    assert float((optimizer.second / 0.001).sum().sqrt()) == pytest.approx(1e-2, rel=1e-4)


def test_raw_projection_leaves_the_optimizer_alone() -> None:
    forget, retain = gradients(1)
    optimizer = AdamW(torch.zeros(400), 0.0)
    combined = Blur(blur_method(gamma=0.4), WHOLE, CPU).combine_(forget, retain.clone(), NO_LOSS, optimizer)
    assert optimizer.steps == 0
    f, r = forget.double(), retain.double()
    xi = 0.4 - f.dot(r) / f.dot(f)
    torch.testing.assert_close(combined.update.double(), r + xi * f, rtol=1e-5, atol=1e-5)
    assert float(combined.forget_weight) == pytest.approx(float(xi), rel=1e-5)


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_swapped_roles_are_the_forget_upper_form(scale: str) -> None:
    forget, retain = gradients(3)
    method = ForgetUpperMethod.model_validate({"gamma": 0.7, "gamma_scale": scale, "steps": 1})
    combined = ForgetUpper(method, WHOLE, CPU).combine_(forget, retain.clone(), NO_LOSS, AdamW(torch.zeros(400), 0.0))
    f, r = forget.double(), retain.double()
    rest = f - f.dot(r) / r.dot(r) * r
    gamma = 0.7 if scale == "absolute" else 0.7 * rest.norm() / r.norm()
    torch.testing.assert_close(combined.update.double(), rest + gamma * r, rtol=1e-5, atol=1e-5)
    assert float(combined.forget_weight) == 1.0


@pytest.mark.parametrize("projection", ["raw", "preconditioned"])
def test_relative_gamma_goes_by_the_steps_so_far(projection: str) -> None:
    forget, retain = gradients(3)
    blur = Blur(blur_method(gamma=0.5, gamma_scale="relative", projection=projection), WHOLE, CPU)
    optimizer = AdamW(torch.zeros(400), 0.0)
    first = blur.combine_(forget, retain.clone(), NO_LOSS, optimizer).forget_weight
    second = blur.combine_(forget, 1e-6 * retain, NO_LOSS, optimizer).forget_weight
    assert float(second) > 0.1 * abs(float(first)), "forgetting goes on where retaining has nothing left to do"


def test_weighted_sum_weighs_both() -> None:
    forget, retain = gradients(3)
    combined = WeightedSum(0.3, 2.0).combine_(forget, retain.clone(), NO_LOSS, AdamW(torch.zeros(400), 0.0))
    torch.testing.assert_close(combined.update, 2.0 * retain + 0.3 * forget)
    assert float(combined.forget_weight) == pytest.approx(0.3)


def test_dual_weight_follows_the_excess_after_its_warm_up() -> None:
    knobs = {"max_retain_loss": 0.5, "initial_weight": 2.0, "dual_rate": 3.0, "dual_warmup_steps": 2, "steps": 9}
    pdu = Pdu(PduMethod.model_validate(knobs), torch.device("cpu"))
    forget, retain = gradients(3)
    optimizer = AdamW(torch.zeros(400), 0.0)
    weights = []
    for loss in (9.0, 9.0, 0.7, 0.1, 0.0, 0.0, 1.0):
        combined = pdu.combine_(forget, retain.clone(), torch.tensor(loss), optimizer)
        weights.append(float(pdu.state["retain_weight"]))
        torch.testing.assert_close(combined.update, forget + weights[-1] * retain)
        optimizer.observe(combined.update)
    assert weights == pytest.approx([2.0, 2.0, 2.6, 1.4, 0.0, 0.0, 1.5], abs=1e-5)


def test_the_warm_up_of_the_dual_weight_is_not_taken_anew_with_every_turn_of_a_schedule() -> None:
    pdu = Pdu(PduMethod.model_validate({"dual_warmup_steps": 2, "steps": 9}), torch.device("cpu"))
    optimizer = AdamW(torch.zeros(400), 0.0)
    weights = []
    for step in range(4):
        if step == 2:
            optimizer.restart()
        optimizer.observe(pdu.combine_(*gradients(3), torch.tensor(1.0), optimizer).update)
        weights.append(float(pdu.state["retain_weight"]))
    assert weights[0] == weights[1] < weights[2] < weights[3]


@settings(deadline=None)
@given(seed=SEEDS, max_norm=st.sampled_from([1e-3, 1.0, 10.0, 1e6]))
def test_clipping_shortens_the_update_and_keeps_its_direction(seed: int, max_norm: float) -> None:
    update, _ = gradients(seed)
    free = update.clone()
    norm = clip_(update, max_norm)
    assert float(norm) == pytest.approx(float(free.double().norm()), rel=1e-5)
    expected = free * min(1.0, max_norm / float(free.norm()))
    torch.testing.assert_close(update, expected, rtol=1e-4, atol=1e-6 * max_norm)


def test_clipping_leaves_zero_and_what_is_short_enough_bit_by_bit() -> None:
    zero, short = torch.zeros(5), torch.linspace(-0.1, 0.1, 5)
    assert float(clip_(zero, 1.0)) == 0.0
    assert torch.equal(zero, torch.zeros(5))
    clip_(short, 1.0)
    assert torch.equal(short, torch.linspace(-0.1, 0.1, 5))


def vanished_pairs() -> list[tuple[Tensor, Tensor]]:
    forget, retain = gradients(0)
    zero = torch.zeros(400)
    return [(zero, retain), (forget, zero), (zero, zero), (1e-9 * forget, retain)]


@pytest.mark.parametrize("knobs", [
    {"type": "blur"}, {"type": "blur", "projection": "preconditioned"}, {"type": "blur", "gamma_scale": "relative"},
    {"type": "forget_upper"}, {"type": "forget_upper", "gamma_scale": "relative"},
    {"type": "weighted_sum"}, {"type": "pdu"},
])  # fmt: skip
def test_vanished_gradients_never_make_a_nan(llama: Tiny, knobs: dict[str, Any]) -> None:
    gamma = {} if knobs["type"] == "pdu" else {"gamma": 0.3}
    factors = Factors(load(llama)[0])
    combiner = build_combiner(METHOD.validate_python({"steps": 1, **gamma, **knobs}), factors)
    size = factors.vector.numel()
    for forget, retain in vanished_pairs():
        optimizer = AdamW(torch.zeros(size), 0.0)
        f, r = (torch.cat([v, torch.zeros(size - 400)]) for v in (forget, retain))
        combined = combiner.combine_(f, r, torch.tensor(0.0), optimizer)
        clip_(combined.update, 1.0)
        if combined.rescaling is None:
            optimizer.observe(combined.update)
        move = optimizer.step(combined.update, 0.1, combined.rescaling)
        assert bool(torch.isfinite(combined.update).all())
        assert bool(torch.isfinite(move).all())
        assert bool(torch.isfinite(combined.forget_weight))


@pytest.mark.parametrize("kind", UNLEARNING_REQUESTS)
def test_every_method_has_a_combiner_of_its_own(llama: Tiny, kind: str) -> None:
    method = UNLEARNING_REQUESTS[kind]().resolve(4)  # type: ignore[attr-defined]
    built = build_combiner(method, Factors(load(llama)[0]))
    assert type(built).__name__.lower() == kind.replace("_", "")


def test_scopes_reach_the_projection(llama: Tiny) -> None:
    factors = Factors(load(llama)[0])
    f, r = (torch.randn(factors.vector.numel(), generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    updates = []
    for scope in ("global", "layer", "module"):
        method: BlurMethod = blur_method(scope=scope, gamma=0.0)
        update = build_combiner(method, factors).combine_(f, r.clone(), NO_LOSS, AdamW(torch.zeros(1), 0.0)).update
        updates.append(update)
        for part in factors.segments(method.scope):
            assert abs(float(update[part].dot(f[part]))) < 1e-3
    assert not torch.allclose(updates[0], updates[1])
    assert not torch.allclose(updates[1], updates[2])
