"""Values of label tokens from hidden states, chunk by chunk, so that the vocabulary never sets the peak of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from torch import Tensor

from worker.unlearning.models import Head

# Logits that are alive at once. A loss needs about three tensors of that many floats.
CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}

TokenLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(labels, vocab) float32 logits, (labels,) tokens, (labels, vocab) source logits or None -> (labels,) values."""


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each label in nats: (labels, vocab), (labels,) -> (labels,)."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def token_values(
    head: Head, hidden: Tensor, labels: Tensor, loss: TokenLoss, source_hidden: Tensor | None = None
) -> Tensor:
    """One value per label, differentiable in the hidden states: (labels, hidden), (labels,) -> (labels,) float32.

    The value of a token depends on its own hidden state alone. So its derivative is taken chunk by chunk while
    the logits are at hand, and what is kept for the backward pass has the size of the hidden states. That costs
    no second computation.

    Args:
        head: from hidden states to logits.
        hidden: last hidden states at the label positions.
        labels: the tokens to score.
        loss: value of each token.
        source_hidden: the same positions under the source adapter, for losses that compare with its logits.
    """
    size = _chunk(head, hidden)
    if head.trained or not hidden.requires_grad:
        # A trained output layer needs gradients of its own, which plain automatic differentiation gives.
        parts = [_values(head, hidden, labels, loss, source_hidden, at, size) for at in range(0, len(labels), size)]
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
    values: Tensor = _TokenValues.apply(hidden, head, labels, loss, source_hidden, size)  # type: ignore[no-untyped-call]
    return values


def _values(
    head: Head, hidden: Tensor, labels: Tensor, loss: TokenLoss, source: Tensor | None, at: int, size: int
) -> Tensor:
    """The values of one chunk."""
    part = slice(at, at + size)
    with torch.no_grad():
        source_logits = None if source is None else head(source[part]).float()
    return loss(head(hidden[part]).float(), labels[part], source_logits)


def _chunk(head: Head, hidden: Tensor) -> int:
    """Labels per chunk."""
    return max(1, CHUNK_ELEMENTS.get(hidden.device.type, 2**24) // head.vocabulary)


class _TokenValues(torch.autograd.Function):
    """Values of label tokens, with their derivatives taken on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own context
        hidden: Tensor,
        head: Head,
        labels: Tensor,
        loss: TokenLoss,
        source: Tensor | None,
        size: int,
    ) -> Tensor:
        """(labels, hidden) -> (labels,)."""
        values = torch.empty(len(labels), dtype=torch.float32, device=hidden.device)
        slopes = torch.empty_like(hidden)  # d value / d hidden, (labels, hidden)
        for at in range(0, len(labels), size):
            with torch.enable_grad():
                leaf = hidden[at : at + size].detach().requires_grad_()
                where = labels[at : at + size]
                part = _values(head, leaf, where, loss, None if source is None else source[at : at + size], 0, size)
                (slope,) = torch.autograd.grad(part.sum(), leaf)
            values[at : at + size] = part.detach()
            slopes[at : at + size] = slope
        ctx.save_for_backward(slopes)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's own context
        """(labels,) -> (labels, hidden)."""
        (slopes,) = ctx.saved_tensors
        return (slopes * gradient[:, None].to(slopes.dtype), None, None, None, None, None)


@torch.no_grad()
def label_scores(head: Head, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """NLL in nats of each label, and whether it is the model's first choice: both (labels,)."""
    nll, first = [], []
    size = _chunk(head, hidden)
    for at in range(0, len(labels), size):
        logits = head(hidden[at : at + size]).float()
        where = labels[at : at + size]
        nll.append(token_nll(logits, where))
        first.append(logits.argmax(-1) == where)
    return torch.cat(nll), torch.cat(first)
