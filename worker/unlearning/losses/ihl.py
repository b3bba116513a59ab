"""Inverted hinge loss (LoKU, Cha et al., arXiv 2408.06621)."""

from __future__ import annotations

import torch
from torch import Tensor

from app.methods import IhlLoss
from worker.unlearning.losses.base import Loss


class Ihl(Loss):
    """1 + p(y) - max over v != y of p(v), mean over the step's label tokens; in [0, 2].

    Two logits move: that of the answer down, that of the likeliest other token up. It stops when the model is
    sure of another token, which is another plausible answer.
    """

    def __init__(self, knobs: IhlLoss) -> None:
        del knobs

    def token_values(self, logits: Tensor, labels: Tensor, source_logits: Tensor | None) -> Tensor:
        """(labels, vocab), (labels,) -> (labels,)."""
        del source_logits
        p = logits.softmax(-1)
        index = labels[:, None]
        others = torch.scatter(p, 1, index, -1.0)  # below any probability, so never the largest
        return 1.0 + p.gather(1, index)[:, 0] - others.max(-1).values
