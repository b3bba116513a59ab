from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.unlearning.losses import npo, sum_by_row, token_nll


def test_token_nll_is_minus_log_softmax_in_float32() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]], dtype=torch.bfloat16)
    nll = token_nll(logits, torch.tensor([0, 1]))
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, torch.tensor([math.log(4.0), math.log(2.0)]), rtol=5e-3, atol=0)


def test_rows_are_summed_apart_and_an_empty_row_is_zero() -> None:
    values, rows = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2])
    assert sum_by_row(values, rows, 4).tolist() == [1.0, 0.0, 6.0, 0.0]


@pytest.mark.parametrize(("beta", "start"), [(0.1, 13.863), (0.04, 34.657), (0.005, 277.26)])
def test_npo_starts_at_two_over_beta_log_two(beta: float, start: float) -> None:
    nll = torch.tensor([3.0, 700.0])
    torch.testing.assert_close(npo(nll, nll.clone(), beta), torch.full((2,), start), rtol=1e-4, atol=0)


@settings(deadline=None)
@given(gap=st.floats(-200, 200), beta=st.sampled_from([0.005, 0.03, 0.1, 1.0]))
def test_npo_gradient_weighs_a_sequence_by_twice_the_sigmoid(gap: float, beta: float) -> None:
    nll = torch.tensor([50.0 + gap], requires_grad=True)
    npo(nll, torch.tensor([50.0]), beta).sum().backward()  # type: ignore[no-untyped-call]
    assert nll.grad is not None
    weight = 2.0 * torch.sigmoid(torch.tensor(-beta * gap, dtype=torch.float64))
    assert float(-nll.grad) == pytest.approx(float(weight), rel=1e-3, abs=1e-6)


def test_npo_is_per_sequence_and_not_of_the_batch_mean() -> None:
    nll, reference = torch.tensor([10.0, 90.0]), torch.tensor([20.0, 30.0])
    together = npo(nll, reference, 0.1)
    alone = torch.cat([npo(nll[i : i + 1], reference[i : i + 1], 0.1) for i in range(2)])
    torch.testing.assert_close(together, alone)
    assert abs(float(together.mean() - npo(nll.mean(), reference.mean(), 0.1))) > 0.5
