from __future__ import annotations

import pytest
import torch

from worker.unlearning.adamw import AdamW

RATES = (1e-2, 1e-2, 3e-3, 0.0, 1e-3, 5e-4, 1e-2)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_are_those_of_torch(weight_decay: float) -> None:
    generator = torch.Generator().manual_seed(0)
    theirs = torch.nn.Parameter(torch.randn(500, generator=generator))
    ours = theirs.detach().clone()
    reference = torch.optim.AdamW([theirs], weight_decay=weight_decay)
    optimizer = AdamW(ours, weight_decay)
    scales = torch.logspace(-9, 3, 500)  # from where epsilon counts to where it does not
    for rate in RATES:
        update = scales * torch.randn(500, generator=generator)
        theirs.grad = update.clone()
        reference.param_groups[0]["lr"] = rate
        reference.step()
        optimizer.observe(update)
        optimizer.step(update, rate)
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-7)


def test_step_with_a_known_rescaling_is_the_same_step() -> None:
    update, start = torch.linspace(-2, 2, 50), torch.ones(50)
    plain, known = AdamW(start.clone(), 0.1), AdamW(start.clone(), 0.1)
    for optimizer in (plain, known):
        optimizer.observe(update)
    assert torch.equal(plain.step(update, 0.1), known.step(update, 0.1, known.rescaling()))


def test_move_is_what_changed_but_for_the_decay() -> None:
    parameters = torch.full((50,), 2.0)
    optimizer = AdamW(parameters, weight_decay=0.5)
    update = torch.linspace(-2, 2, 50)
    optimizer.observe(update)
    move = optimizer.step(update, 0.01)
    torch.testing.assert_close(parameters, 2.0 * (1 - 0.005) + move)
    assert float(move.dot(update)) < 0, "it descends"
    assert torch.equal(update, torch.linspace(-2, 2, 50)), "the update is left as it is"


def test_observing_twice_is_two_steps() -> None:
    """The second moment is what a run that observes before it steps relies on."""
    optimizer = AdamW(torch.zeros(3), 0.0)
    for value in (1.0, 3.0):
        optimizer.observe(torch.full((3,), value))
    second = (0.001 * 0.999 * 1 + 0.001 * 9) / (1 - 0.999**2)
    torch.testing.assert_close(optimizer.rescaling(), torch.full((3,), second**-0.5))
