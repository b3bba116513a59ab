"""Values of label tokens, and their derivatives taken on the way forward."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from torch import Tensor

from app.methods import FORGET_LOSSES, RETAIN_LOSSES
from tests.worker.conftest import VOCABULARY, Tiny
from tests.worker.unlearning.engine import load
from worker.unlearning import scoring
from worker.unlearning.losses import build_loss
from worker.unlearning.models import Head
from worker.unlearning.scoring import FULL_PULL, Tokens, anchored, label_scores, token_nll, token_values

PER_TOKEN = sorted(set(FORGET_LOSSES | RETAIN_LOSSES) - {"rmu"})
LABELS = 11


def chunks_of(monkeypatch: pytest.MonkeyPatch, labels: int) -> None:
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", {"cpu": labels * VOCABULARY})


def draw() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, those of the source, and labels."""
    generator = torch.Generator().manual_seed(0)
    hidden, source = (torch.randn(LABELS, 32, generator=generator) for _ in range(2))
    return hidden, source, torch.randint(VOCABULARY, (LABELS,), generator=generator)


def test_token_nll_is_minus_log_softmax_in_float32() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [2.0, 2.0]], dtype=torch.bfloat16)
    nll = token_nll(logits, torch.tensor([0, 1]))
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, torch.tensor([math.log(4.0), math.log(2.0)]), rtol=5e-3, atol=0)


@pytest.mark.parametrize(
    ("distance", "both_ways", "pull"),
    [
        (10 * FULL_PULL, True, 1.0),
        (FULL_PULL / 2, True, 0.5),
        (0.0, True, 0.0),
        (-FULL_PULL / 4, True, -0.25),
        (-9 * FULL_PULL, True, -1.0),
        (-FULL_PULL / 4, False, 0.0),
        (math.inf, True, 1.0),
    ],
)
def test_anchor_draws_from_both_sides_and_the_more_the_farther(
    distance: float, pull: float, *, both_ways: bool
) -> None:
    values = torch.tensor([3.0, -2.0], requires_grad=True)
    nll = torch.tensor([4.0, 5.0])
    drawn = anchored(values, nll, nll + distance, both_ways=both_ways)
    assert drawn.tolist() == values.tolist()
    drawn.sum().backward()  # type: ignore[no-untyped-call]
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([pull, pull])


@pytest.mark.parametrize("anchor", [False, True])
@pytest.mark.parametrize("kind", PER_TOKEN)
def test_chunks_change_neither_values_nor_derivatives(
    headed: Tiny, monkeypatch: pytest.MonkeyPatch, kind: str, *, anchor: bool
) -> None:
    head = Head(load(headed)[0])
    hidden, source, labels = draw()
    loss = build_loss((FORGET_LOSSES | RETAIN_LOSSES)[kind]())  # type: ignore[arg-type]
    reference = source if loss.needs_source_logits else None
    anchors = torch.linspace(0.0, 20.0, LABELS) if anchor else None
    weights = torch.linspace(-1.0, 2.0, LABELS)

    plain = hidden.clone().requires_grad_()
    logits = head(plain)
    expected = loss.token_values(logits, labels, None if reference is None else head(reference))
    if anchors is not None:
        expected = anchored(expected, F.cross_entropy(logits.detach(), labels, reduction="none"), anchors)
    (slope,) = torch.autograd.grad((weights * expected).sum(), plain)
    for size in (1, 3, LABELS, 100):
        chunks_of(monkeypatch, size)
        leaf = hidden.clone().requires_grad_()
        values = token_values(head, leaf, Tokens(labels, reference, anchors), loss.token_values)
        torch.testing.assert_close(values, expected.detach(), rtol=1e-5, atol=1e-5)
        (found,) = torch.autograd.grad((weights * values).sum(), leaf)
        torch.testing.assert_close(found, slope, rtol=1e-4, atol=1e-5 * float(slope.abs().max()))


def test_logits_of_one_chunk_are_alive_at_once(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(monkeypatch, 4)
    model: Any = load(llama)[0]
    head = Head(model)
    fed: list[int] = []
    model.get_base_model().lm_head.register_forward_hook(lambda _m, args, _out: fed.append(args[0].shape[-2]))
    hidden, source, labels = draw()
    kl = build_loss(RETAIN_LOSSES["kl"]())  # type: ignore[arg-type]
    leaf = hidden.requires_grad_()
    token_values(head, leaf, Tokens(labels, source), kl.token_values).sum().backward()  # type: ignore[no-untyped-call]
    assert sorted(fed) == [3, 3, 4, 4, 4, 4], "each once, and none again in the backward pass"


def test_trained_output_layer_gets_its_gradient(outer: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    chunks_of(monkeypatch, 4)
    model: Any = load(outer)[0]
    head = Head(model)
    assert head.trained
    hidden, _, labels = draw()
    leaf = hidden.clone().requires_grad_()
    factors = [p for n, p in model.named_parameters() if "lm_head" in n and p.requires_grad]
    found = torch.autograd.grad(
        token_values(head, leaf, Tokens(labels), lambda z, y, _: token_nll(z, y)).sum(), [leaf, *factors]
    )
    plain = hidden.clone().requires_grad_()
    expected = torch.autograd.grad(token_nll(head(plain), labels).sum(), [plain, *factors])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_labels_have_no_values(llama: Tiny) -> None:
    head = Head(load(llama)[0])
    nothing = Tokens(torch.zeros(0, dtype=torch.int64))
    assert token_values(head, torch.zeros(0, 32), nothing, lambda z, y, _: token_nll(z, y)).shape == (0,)


def test_scores_are_nll_and_first_choice(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(load(llama)[0])
    hidden, _, labels = draw()
    logits = head(hidden)
    labels[::2] = logits.argmax(-1)[::2]
    chunks_of(monkeypatch, 3)
    nll, first = label_scores(head, hidden, labels)
    torch.testing.assert_close(nll, token_nll(logits, labels).detach())
    assert first.tolist() == (logits.argmax(-1) == labels).tolist()
    assert int(first.sum()) >= 6
