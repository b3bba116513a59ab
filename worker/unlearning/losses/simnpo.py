"""SimNPO: NPO without a reference (Fan et al., arXiv 2410.07163)."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from torch import Tensor

from app.methods import SimNpoLoss
from worker.unlearning.losses.base import Loss, Rows, StepSize


class SimNpo(Loss):
    """L_i = -(2/beta) log sigmoid(beta (l_i / |y_i| - delta)), mean over the step's sequences.

    l is the summed answer NLL in nats, |y| the number of answer tokens. Sequences that are unlikely by
    themselves get little weight, and so do those already forgotten.
    """

    def __init__(self, knobs: SimNpoLoss) -> None:
        self.beta, self.delta = knobs.beta, knobs.delta

    def total(self, values: Tensor, rows: Rows, step: StepSize) -> Tensor:
        """(labels,) NLL -> ()."""
        margin = rows.sums(values) / rows.lengths - self.delta  # (sequences,), nats per token
        return -(2.0 / self.beta) * F.logsigmoid(self.beta * margin).sum() / step.records
