"""NPO: negative preference optimisation (Zhang et al., arXiv 2404.05868, eq. 3)."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from torch import Tensor

from app.methods import NpoLoss
from worker.unlearning.losses.base import Loss, Rows, StepSize


class Npo(Loss):
    """L_i = -(2/beta) log sigmoid(beta (l_i - l_source,i)), mean over the step's sequences.

    l is the summed answer NLL in nats. At the start L_i = (2/beta) ln 2 and its gradient is that of -l_i: plain
    gradient ascent. The weight of a sequence fades as 2 sigmoid(-beta (l_i - l_source,i)), that is, once it is
    about 1/beta nats less likely than it was. With ``per_token`` both l are means over the answer's tokens.
    """

    def __init__(self, knobs: NpoLoss) -> None:
        self.beta, self.per_token = knobs.beta, knobs.per_token

    def total(self, values: Tensor, rows: Rows, step: StepSize) -> Tensor:
        """(labels,) NLL -> ()."""
        ratio = rows.sums(values) - rows.source_nll  # (sequences,)
        if self.per_token:
            ratio = ratio / rows.lengths
        return -(2.0 / self.beta) * F.logsigmoid(self.beta * ratio).sum() / step.records
