"""UNDIAL: self-distillation with adjusted logits (Dong et al., arXiv 2402.10052)."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from torch import Tensor

from app.methods import UndialLoss
from worker.unlearning.losses.base import Loss


class Undial(Loss):
    """Cross-entropy to softmax(z_source - beta onehot(y)), mean over the step's label tokens.

    The source model's own distribution is the teacher, with the answer token made less likely by beta in its
    logit. Bounded; it stops when the teacher is matched.
    """

    needs_source_logits = True
    reversible = False  # away from the teacher makes every token that it prefers less likely, too

    def __init__(self, knobs: UndialLoss) -> None:
        self.beta = knobs.beta

    def token_values(self, logits: Tensor, labels: Tensor, source_logits: Tensor | None) -> Tensor:
        """(labels, vocab), (labels,), (labels, vocab) -> (labels,)."""
        if source_logits is None:
            raise ValueError("UNDIAL needs the logits of the source adapter")
        lowered = source_logits.clone()
        lowered.scatter_(1, labels[:, None], lowered.gather(1, labels[:, None]) - self.beta)
        return F.cross_entropy(logits, lowered.softmax(-1), reduction="none")
