"""BLUR: one update direction from a forget and a retain gradient (Reisizadeh et al., arXiv 2506.08164).

Bi-level problem: minimise the retain loss among the minimisers of the forget loss. The lower level has
priority: the upper gradient is stripped of its component along the lower one, then gamma times the whole
lower gradient is added,

    u = gamma g_f + (g_r - (<g_r, g_f> / ||g_f||^2) g_f)

so that <u, g_f> = gamma ||g_f||^2 whatever g_r is: to first order, the forget loss falls at a rate that
retaining cannot change. Everything is decided on the device of the gradients; nothing here waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Below this ratio of squared norms the lower gradient counts as zero: its direction is rounding error, and
# dividing by its norm would make noise of the upper gradient. The method still works well at ratios near
# 1e-6, hence so small.
ZERO_RATIO = 1e-12


@dataclass(frozen=True)
class Combination:
    """The scalars of one update, all 0-dim float32 tensors on the device of the gradients.

    Attributes:
        lower_squared: ||g_f||^2.
        product: <g_f, g_r>.
        upper_squared: ||g_r||^2.
        xi: weight of g_f in u = g_r + xi g_f.
        norm: ||u|| before clipping.
        clip: factor in (0, 1] by which u was multiplied.
    """

    lower_squared: Tensor
    product: Tensor
    upper_squared: Tensor
    xi: Tensor
    norm: Tensor
    clip: Tensor


def combine_(lower: Tensor, upper: Tensor, *, gamma: float, max_norm: float) -> Combination:
    """Overwrite ``upper`` with the clipped update u.

    With the forget gradient as ``lower`` this is BLUR. With the roles swapped it is the paper's forget-upper
    ablation.

    Args:
        lower: (parameters,) float32, gradient of the level with priority; left as it is.
        upper: (parameters,) float32, gradient of the other level; becomes u.
        gamma: rate of the lower level, at least 0.
        max_norm: norm to which u, not its parts, is clipped.
    """
    lower_squared, product, upper_squared = lower.dot(lower), lower.dot(upper), upper.dot(upper)
    vanished = lower_squared <= ZERO_RATIO * upper_squared  # also true when both are 0
    # xi = gamma - <g_r, g_f> / ||g_f||^2, or u = g_r where there is nothing left to forget: where() drops the
    # quotient by zero.
    xi = torch.where(vanished, 0.0, gamma - product / lower_squared)
    # ||u||^2 = gamma^2 s_ff + s_rr - s_fr^2 / s_ff, without a pass over u.
    projected = gamma**2 * lower_squared + upper_squared - product**2 / lower_squared
    norm = torch.where(vanished, upper_squared, projected).clamp_min(0.0).sqrt()
    clip = (max_norm / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)
    upper.addcmul_(lower, xi).mul_(clip)
    return Combination(lower_squared, product, upper_squared, xi, norm, clip)
