"""Gradient ascent."""

from __future__ import annotations

from torch import Tensor

from app.methods import GaLoss
from worker.unlearning.losses.base import Loss
from worker.unlearning.scoring import token_nll


class Ga(Loss):
    """log p(y), mean over the step's label tokens. Unbounded below: it collapses unless it is stopped in time."""

    def __init__(self, knobs: GaLoss) -> None:
        del knobs

    def token_values(self, logits: Tensor, labels: Tensor, source_logits: Tensor | None) -> Tensor:
        """(labels, vocab), (labels,) -> (labels,)."""
        del source_logits
        return -token_nll(logits, labels)
