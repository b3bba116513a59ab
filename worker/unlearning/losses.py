"""Losses from the logits at the label positions. All sums are in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from torch import Tensor


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of each label in nats: (labels, vocab), (labels,) -> (labels,)."""
    return F.cross_entropy(logits.float(), labels, reduction="none")


def sum_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Sum of the values of each row: (labels,), (labels,) -> (count,).

    A product with the 0/1 membership matrix instead of a scatter, because a scatter-add on a GPU adds in no
    fixed order and would make two runs differ.
    """
    membership = rows[None, :] == torch.arange(count, device=rows.device)[:, None]  # (count, labels)
    return membership.to(values.dtype) @ values


def npo(nll: Tensor, reference: Tensor, beta: float) -> Tensor:
    """Negative preference optimisation of each sequence: (sequences,), (sequences,) -> (sequences,).

    L_i = -(2/beta) log sigmoid(beta (l_i - l_ref,i)), where l is the summed answer NLL in nats under the
    trained adapter and l_ref under the source adapter (Zhang et al., arXiv 2404.05868, eq. 3). At the start
    L_i = (2/beta) ln 2 and its gradient is that of -l_i: plain gradient ascent. The weight of a sequence
    fades as 2 sigmoid(-beta (l_i - l_ref,i)), that is, once it is about 1/beta nats less likely than it was.
    """
    return -(2.0 / beta) * F.logsigmoid(beta * (nll - reference))
