"""From two gradients to one update: BLUR, its ablation, and what it is compared with.

A combiner overwrites the retain gradient with the update direction. None of them waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from app.methods import BlurMethod, ForgetUpperMethod, Method, PduMethod, RetrainMethod
from worker.unlearning.adamw import AdamW
from worker.unlearning.blur import Products, UsualLength, add_lower_, lower_weight, products
from worker.unlearning.factors import Factors


def clip_(update: Tensor, max_norm: float) -> Tensor:
    """Shorten a vector to ``max_norm`` where it is longer; returns its norm before, 0-dim."""
    norm: Tensor = update.norm()
    update.mul_((max_norm / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0))
    return norm


@dataclass(frozen=True)
class Combined:
    """The update of one step, and how AdamW will rescale it where that had to be known already.

    Attributes:
        update: (parameters,), in the place of the retain gradient, not yet clipped.
        rescaling: (parameters,), where the optimizer has observed the step already; None where it has to.
        forget_weight: 0-dim, the weight of g_f in the update; a mean where there are several segments.
    """

    update: Tensor
    rescaling: Tensor | None
    forget_weight: Tensor


class Combiner(Protocol):
    """One way to combine."""

    #: what a checkpoint has to hold, changed in place; by name
    state: dict[str, Tensor]

    def combine_(self, forget: Tensor, retain: Tensor, retain_loss: Tensor, optimizer: AdamW) -> Combined:
        """Overwrite ``retain`` with the update.

        Args:
            forget, retain: (parameters,) gradients of the whole step.
            retain_loss: 0-dim.
            optimizer: about to take this step.
        """
        ...


class _Levels:
    """The rule of blur.py, with the length that a relative gamma goes by in the state."""

    def __init__(
        self, method: BlurMethod | ForgetUpperMethod, segments: Sequence[slice], device: torch.device
    ) -> None:
        self.state: dict[str, Tensor] = {}
        self.segments = segments
        self._gamma, self._relative, self._device = method.gamma, method.gamma_scale == "relative", device
        self._lengths: dict[str, UsualLength] = {}

    def add_length(self, name: str) -> None:
        """Keep a length of its own for one of several metrics, where gamma is relative."""
        if self._relative:
            self._lengths[name] = length = UsualLength(len(self.segments), self._device)
            self.state[name] = length.state

    def weights(self, found: Products, length: str) -> Tensor:
        """xi of every segment; takes this step into the length."""
        usual = self._lengths[length].squared(found) if self._relative else None
        return lower_weight(found, self._gamma, usual)


class Blur(_Levels):
    """The lower level, forgetting, has priority (blur.py)."""

    def __init__(self, method: BlurMethod, segments: Sequence[slice], device: torch.device) -> None:
        super().__init__(method, segments, device)
        self._preconditioned = method.projection == "preconditioned"
        self._max_norm = method.max_grad_norm
        self.add_length("length")
        if self._preconditioned:
            self.add_length("length_in_metric")

    def combine_(self, forget: Tensor, retain: Tensor, retain_loss: Tensor, optimizer: AdamW) -> Combined:
        """u = g_r + xi g_f."""
        del retain_loss
        if self._preconditioned:
            return self._in_the_metric_of_the_step(forget, retain, optimizer)
        weights = self.weights(products(forget, retain, self.segments), "length")
        add_lower_(retain, forget, weights, self.segments)
        return Combined(retain, None, weights.mean())

    def _in_the_metric_of_the_step(self, forget: Tensor, retain: Tensor, optimizer: AdamW) -> Combined:
        """Project twice: plainly, to know the rescaling of this step, and then in its metric.

        The rescaling depends on the update and the update on the rescaling. AdamW observes the plain projection,
        which fixes the rescaling D; the update that is stepped along is projected in the metric of that same D,
        so that the guarantee <D u, g_f> >= 0 is exact.
        """
        plain = retain.clone()
        weights = self.weights(products(forget, retain, self.segments), "length")
        add_lower_(plain, forget, weights, self.segments)
        clip_(plain, self._max_norm)
        optimizer.observe(plain)
        rescaling = optimizer.rescaling()
        weights = self.weights(products(forget, retain, self.segments, rescaling), "length_in_metric")
        add_lower_(retain, forget, weights, self.segments)
        return Combined(retain, rescaling, weights.mean())


class ForgetUpper(_Levels):
    """The levels swapped: u = g_f + (gamma - <g_f, g_r> / ||g_r||^2) g_r, so that retaining has priority."""

    def __init__(self, method: ForgetUpperMethod, segments: Sequence[slice], device: torch.device) -> None:
        super().__init__(method, segments, device)
        self.add_length("length")

    def combine_(self, forget: Tensor, retain: Tensor, retain_loss: Tensor, optimizer: AdamW) -> Combined:
        """The same rule with the gradients in each other's place."""
        del retain_loss, optimizer
        weights = self.weights(products(retain, forget, self.segments), "length")
        retain.mul_(weights).add_(forget)
        return Combined(retain, None, torch.ones_like(weights[0]))


class WeightedSum:
    """u = retain_weight g_r + gamma g_f: NPO, SimNPO, GradDiff and others as they were published."""

    def __init__(self, gamma: float, retain_weight: float) -> None:
        self.state: dict[str, Tensor] = {}
        self._gamma, self._retain_weight = gamma, retain_weight

    def combine_(self, forget: Tensor, retain: Tensor, retain_loss: Tensor, optimizer: AdamW) -> Combined:
        """The sum."""
        del optimizer
        retain.mul_(self._retain_weight).add_(forget, alpha=self._gamma)
        return Combined(retain, None, torch.full_like(retain_loss, self._gamma))


class Pdu:
    """Primal-dual: u = g_f + w g_r, where w follows the retain loss's excess over its limit (dual ascent)."""

    def __init__(self, method: PduMethod, device: torch.device) -> None:
        self._method = method
        weight = torch.tensor([method.initial_weight], dtype=torch.float32, device=device)
        self.state: dict[str, Tensor] = {"retain_weight": weight, "steps": torch.zeros_like(weight)}

    def combine_(self, forget: Tensor, retain: Tensor, retain_loss: Tensor, optimizer: AdamW) -> Combined:
        """w <- max(0, w + rate (L_r - limit)) once the warm-up is over, then the sum."""
        del optimizer  # which counts from its last restart
        weight, steps = self.state["retain_weight"], self.state["steps"]
        ascent = self._method.dual_rate * (retain_loss - self._method.max_retain_loss)
        weight.add_(torch.where(steps < self._method.dual_warmup_steps, 0.0, ascent)).clamp_min_(0.0)
        steps.add_(1)
        retain.mul_(weight).add_(forget)
        return Combined(retain, None, torch.ones_like(retain_loss))


def build_combiner(method: Method, factors: Factors) -> Combiner:
    """The combiner that the method's ``type`` names."""
    if isinstance(method, BlurMethod):
        return Blur(method, factors.segments(method.scope), factors.device)
    if isinstance(method, ForgetUpperMethod):
        return ForgetUpper(method, factors.segments("global"), factors.device)
    if isinstance(method, PduMethod):
        return Pdu(method, factors.device)
    if isinstance(method, RetrainMethod):
        return WeightedSum(0.0, 1.0)  # never asked: no step of it has two gradients
    return WeightedSum(method.gamma, method.retain_weight)
