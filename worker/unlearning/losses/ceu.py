"""Cross-entropy unlearning, written as the unlikelihood loss whose gradient it has."""

from __future__ import annotations

import torch
from torch import Tensor

from app.methods import CeuLoss
from worker.unlearning.losses.base import Loss
from worker.unlearning.scoring import token_nll


class Ceu(Loss):
    """-log(1 - p(y)), mean over the step's label tokens.

    The gradient in the logits is that of the cross-entropy to the model's own distribution without the answer
    token (held fixed), which is how CEU is published. The pull is strongest on memorised tokens, where p is near
    1, and it is gone where p is near 0.
    """

    def __init__(self, knobs: CeuLoss) -> None:
        del knobs

    def token_values(self, logits: Tensor, labels: Tensor, source_logits: Tensor | None) -> Tensor:
        """(labels, vocab), (labels,) -> (labels,)."""
        del source_logits
        # log(1 - p) = log sum_{v != y} exp z_v - log sum_v exp z_v is exact where 1 - p would round to 0, and of no
        # use where p is as small as the rounding of the two sums.
        others = torch.scatter(logits, 1, labels[:, None], float("-inf"))
        likely = logits.logsumexp(-1) - others.logsumexp(-1)
        p = (-token_nll(logits, labels)).exp()
        return torch.where(p > 0.5, likely, -torch.log1p(-p.clamp_max(0.5)))
