"""IdkDPO: direct preference optimisation of a refusal over the answer (Rafailov et al., arXiv 2305.18290; TOFU)."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from torch import Tensor

from app.methods import IdkDpoLoss
from worker.unlearning.losses.base import Loss, Rows, StepSize


class IdkDpo(Loss):
    """-(2/beta) log sigmoid(beta (d_refusal - d_answer)), mean over the step's records.

    d = log p(y) - log p_source(y), summed over the tokens of y. Sequences come in pairs: an answer, then a refusal
    of the same prompt (refusals.py).
    """

    needs_refusals = True

    def __init__(self, knobs: IdkDpoLoss) -> None:
        self.beta = knobs.beta

    def total(self, values: Tensor, rows: Rows, step: StepSize) -> Tensor:
        """(labels,) NLL -> ()."""
        gained = rows.source_nll - rows.sums(values)  # (sequences,): d of each
        answer, refusal = gained.view(-1, 2).unbind(1)  # (records,) each
        return -(2.0 / self.beta) * F.logsigmoid(self.beta * (refusal - answer)).sum() / step.records
