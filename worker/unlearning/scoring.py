"""Values of label tokens from hidden states, chunk by chunk, so that the vocabulary never sets the peak of memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from torch import Tensor

from worker.unlearning.models import Head

# Logits that are alive at once. A loss needs about three tensors of that many floats.
CHUNK_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}
FULL_PULL = 3.0  # nats: a token that is this much likelier than its anchor has its whole gradient

TokenLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""(labels, vocab) float32 logits, (labels,) tokens, (labels, vocab) source logits or None -> (labels,) values."""


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each label in nats: (labels, vocab), (labels,) -> (labels,)."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


@dataclass(frozen=True)
class Tokens:
    """Label tokens, and what their values depend on besides their own hidden states.

    Attributes:
        labels: (labels,) int64, the tokens to score.
        source_hidden: (labels, hidden) the same positions under the source adapter, for losses that compare with
            its logits.
        anchor: (labels,) NLL in nats that each token is drawn to (`anchored`), or None.
        both_ways: whether the loss can be reversed for tokens that have become less likely than their anchors.
        source_head: from hidden states to logits under the source adapter, where that differs from the model's own.
    """

    labels: Tensor
    source_hidden: Tensor | None = None
    anchor: Tensor | None = None
    both_ways: bool = True
    source_head: Callable[[Tensor], Tensor] | None = None

    def part(self, at: int, size: int) -> Tokens:
        """Some of them."""
        chosen = slice(at, at + size)
        source, anchor = (None if field is None else field[chosen] for field in (self.source_hidden, self.anchor))
        return Tokens(self.labels[chosen], source, anchor, self.both_ways, self.source_head)


def anchored(values: Tensor, nll: Tensor, anchor: Tensor, *, both_ways: bool = True) -> Tensor:
    """The same values with each gradient weighted by how far its token is from its anchor: (labels,) each.

    The weight is (anchor - nll) / `FULL_PULL`, between -1 and 1: whole while a token is far likelier than under the
    anchor, none at the anchor, and reversed where it has become less likely. Without the slope tokens would jump to
    and fro around their anchors, and drown those that have not come to theirs yet.

    Args:
        values: what the loss makes of each token.
        nll: NLL in nats, without a gradient.
        anchor: NLL in nats that is aimed at; infinite for a token that has none.
        both_ways: False for a loss whose reversal does not make the token likelier again.
    """
    weight = ((anchor - nll) / FULL_PULL).clamp(-1.0 if both_ways else 0.0, 1.0)
    fixed = values.detach()
    return fixed + weight * (values - fixed)


def token_values(head: Head, hidden: Tensor, tokens: Tokens, loss: TokenLoss) -> Tensor:
    """One value per label, differentiable in the hidden states: (labels, hidden) -> (labels,) float32.

    The value of a token depends on its own hidden state alone. So its derivative is taken chunk by chunk while
    the logits are at hand, and what is kept for the backward pass has the size of the hidden states. That costs
    no second computation.

    Args:
        head: from hidden states to logits.
        hidden: last hidden states at the label positions.
        tokens: what to score.
        loss: value of each token.
    """
    size = _chunk(head, hidden)
    if head.trained or not hidden.requires_grad:
        # A trained output layer needs gradients of its own, which plain automatic differentiation gives.
        starts = range(0, len(hidden), size)
        parts = [_values(head, hidden[at : at + size], tokens.part(at, size), loss) for at in starts]
        return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)
    values: Tensor = _TokenValues.apply(hidden, head, tokens, loss, size)  # type: ignore[no-untyped-call]
    return values


def _values(head: Head, hidden: Tensor, tokens: Tokens, loss: TokenLoss) -> Tensor:
    """The values of one chunk."""
    logits = head(hidden).float()
    with torch.no_grad():
        source_head = tokens.source_head or head
        source_logits = None if tokens.source_hidden is None else source_head(tokens.source_hidden).float()
    values = loss(logits, tokens.labels, source_logits)
    if tokens.anchor is None:
        return values
    nll = token_nll(logits.detach(), tokens.labels)
    return anchored(values, nll, tokens.anchor, both_ways=tokens.both_ways)


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
        tokens: Tokens,
        loss: TokenLoss,
        size: int,
    ) -> Tensor:
        """(labels, hidden) -> (labels,)."""
        values = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        slopes = torch.empty_like(hidden)  # d value / d hidden, (labels, hidden)
        for at in range(0, len(hidden), size):
            with torch.enable_grad():
                leaf = hidden[at : at + size].detach().requires_grad_()
                part = _values(head, leaf, tokens.part(at, size), loss)
                (slope,) = torch.autograd.grad(part.sum(), leaf)
            values[at : at + size] = part.detach()
            slopes[at : at + size] = slope
        ctx.save_for_backward(slopes)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's own context
        """(labels,) -> (labels, hidden)."""
        (slopes,) = ctx.saved_tensors
        return (slopes * gradient[:, None].to(slopes.dtype), None, None, None, None)


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
