"""BLUR: one update direction from a forget and a retain gradient (Reisizadeh et al., arXiv 2506.08164).

Bi-level problem: minimise the retain loss among the minimisers of the forget loss. The lower level has
priority: the upper gradient is stripped of its component along the lower one, then gamma times the whole
lower gradient is added,

    u = gamma g_f + (g_r - (<g_r, g_f> / <g_f, g_f>) g_f)

so that <u, g_f> = gamma <g_f, g_f> whatever g_r is: to first order, the forget loss falls at a rate that
retaining cannot change. Everything is decided on the device of the gradients; nothing here waits for it.

Relative gamma: per-token and per-sequence losses differ by orders of magnitude in ||g_f||, and one gamma cannot
serve both. So gamma is multiplied by l / ||g_f||, with l the root mean square of ||g_r_perp||, the stripped
gradient: the part of u that forgets is gamma times as long as the part that retains usually is, whatever the loss and
its scale. Usually: AdamW divides by the root mean square of the updates so far. Relative to this very step's
||g_r_perp||, which shrinks as retaining succeeds, the steps of slow losses would shrink to nothing before their work
is done. So l remembers as AdamW's second moment does (`UsualLength`).

The inner product is the plain one, or the one of AdamW: <a, b>_D = sum_i a_i D_i b_i, with D the factor by which its
step multiplies each coordinate. Under it <D u, g_f> = gamma <g_f, g_f>_D >= 0: the step that is taken, without
momentum, never raises the forget loss to first order, which the plain product guarantees for plain descent only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.unlearning.adamw import BETA_2

# Below this ratio of squared norms the lower gradient counts as zero: its direction is rounding error, and
# dividing by its norm would make noise of the upper gradient. The method still works well at ratios near
# 1e-6, hence so small.
ZERO_RATIO = 1e-12


@dataclass(frozen=True)
class Products:
    """Inner products of the lower and the upper gradient: float32 tensors, one entry per projected segment.

    Attributes:
        lower_squared: <g_f, g_f>.
        product: <g_f, g_r>.
        upper_squared: <g_r, g_r>.
    """

    lower_squared: Tensor
    product: Tensor
    upper_squared: Tensor

    @property
    def vanished(self) -> Tensor:
        """Where nothing is left to forget; also where both gradients are zero."""
        return self.lower_squared <= ZERO_RATIO * self.upper_squared

    @property
    def rejected_squared(self) -> Tensor:
        """||g_r_perp||^2 = <g_r, g_r> - <g_f, g_r>^2 / <g_f, g_f>, without a pass over the vectors."""
        rest = self.upper_squared - self.product**2 / self.lower_squared
        return torch.where(self.vanished, self.upper_squared, rest).clamp_min(0.0)


def products(lower: Tensor, upper: Tensor, segments: Sequence[slice], metric: Tensor | None = None) -> Products:
    """The three products of every segment.

    Args:
        lower, upper: (parameters,) float32.
        segments: parts of the vectors to project on their own.
        metric: (parameters,) positive factors D of the inner product, or None for the plain one.
    """
    weighted_lower = lower if metric is None else lower * metric
    weighted_upper = upper if metric is None else upper * metric
    return Products(
        torch.stack([lower[part].dot(weighted_lower[part]) for part in segments]),
        torch.stack([lower[part].dot(weighted_upper[part]) for part in segments]),
        torch.stack([upper[part].dot(weighted_upper[part]) for part in segments]),
    )


class UsualLength:
    """l^2, the mean of ||g_r_perp||^2 over the steps so far; older ones fade as in AdamW's second moment.

    Attributes:
        state: (2, segments): the running mean, and the weight that it has gathered, to correct its bias from the
            start at zero. Changed in place.
    """

    def __init__(self, segments: int, device: torch.device) -> None:
        self.state = torch.zeros(2, segments, device=device)

    def squared(self, found: Products) -> Tensor:
        """Take in a step; returns l^2 of each segment: (segments,)."""
        now = torch.stack((found.rejected_squared, torch.ones_like(found.lower_squared)))
        self.state.lerp_(now, 1 - BETA_2)
        return self.state[0] / self.state[1]


def strength(found: Products, gamma: float, length_squared: Tensor | None) -> Tensor:
    """Gamma of each segment as it multiplies the lower gradient: (segments,).

    Args:
        found: of this step.
        gamma: as the method has it.
        length_squared: (segments,) l^2 that gamma is relative to, or None for an absolute gamma.
    """
    if length_squared is None:
        return torch.full_like(found.lower_squared, gamma)
    return torch.where(found.vanished, 0.0, gamma * (length_squared / found.lower_squared).sqrt())


def lower_weight(found: Products, gamma: float, length_squared: Tensor | None) -> Tensor:
    """xi of each segment, the weight of g_f in u = g_r + xi g_f: (segments,).

    xi = gamma - <g_r, g_f> / <g_f, g_f>, and 0 where the lower gradient has vanished: where() drops the quotient
    by zero. The arguments are those of `strength`.
    """
    xi = strength(found, gamma, length_squared) - found.product / found.lower_squared
    return torch.where(found.vanished, 0.0, xi)


def add_lower_(upper: Tensor, lower: Tensor, weights: Tensor, segments: Sequence[slice]) -> None:
    """upper += weight * lower, segment by segment."""
    for part, weight in zip(segments, weights, strict=True):
        upper[part].addcmul_(lower[part], weight)
