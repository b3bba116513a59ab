"""Weighted gradient ascent (Wang et al., arXiv 2502.19301)."""

from __future__ import annotations

from torch import Tensor

from app.methods import WgaLoss
from worker.unlearning.losses.base import Loss
from worker.unlearning.scoring import token_nll


class Wga(Loss):
    """p(y)^beta log p(y) with the factor p^beta held fixed, mean over the step's label tokens.

    Gradient ascent that spares tokens in the measure in which they are forgotten already.
    """

    def __init__(self, knobs: WgaLoss) -> None:
        self.beta = knobs.beta

    def token_values(self, logits: Tensor, labels: Tensor, source_logits: Tensor | None) -> Tensor:
        """(labels, vocab), (labels,) -> (labels,)."""
        del source_logits
        nll = token_nll(logits, labels)
        return -(-self.beta * nll.detach()).exp() * nll
