"""Divergence from the source adapter."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from torch import Tensor

from app.methods import KlLoss
from worker.unlearning.losses.base import Loss


class Kl(Loss):
    """KL(p_source || p) of the next-token distributions at the label positions, mean over the step's label tokens."""

    needs_source_logits = True

    def __init__(self, knobs: KlLoss) -> None:
        del knobs

    def token_values(self, logits: Tensor, labels: Tensor, source_logits: Tensor | None) -> Tensor:
        """(labels, vocab), (labels, vocab) -> (labels,)."""
        del labels
        if source_logits is None:
            raise ValueError("KL needs the logits of the source adapter")
        source = source_logits.log_softmax(-1)
        return F.kl_div(logits.log_softmax(-1), source, log_target=True, reduction="none").sum(-1)
