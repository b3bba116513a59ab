"""AdamW on one vector (Loshchilov and Hutter, arXiv 1711.05101), in two halves.

torch's AdamW takes its step from one gradient. A projection in the metric of the step needs the rescaling of that
very step before the update is known: so the second moment is brought up to date first, and the step is taken after.
"""

from __future__ import annotations

import torch
from torch import Tensor

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class AdamW:
    """Moments of one vector of parameters, changed in place.

    Attributes:
        first, second: running means of u and of u^2, (parameters,) float32.
        steps: steps taken.
    """

    def __init__(self, parameters: Tensor, weight_decay: float) -> None:
        self._parameters = parameters
        self._weight_decay = weight_decay
        self.first, self.second = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self.steps = 0

    def restart(self) -> None:
        """Forget the moments, as a new run of training would."""
        self.first.zero_()
        self.second.zero_()
        self.steps = 0

    def observe(self, update: Tensor) -> None:
        """Begin a step: take an update direction, (parameters,), into the second moment."""
        self.steps += 1
        self.second.mul_(BETA_2).addcmul_(update, update, value=1 - BETA_2)

    def rescaling(self) -> Tensor:
        """D = 1 / (sqrt(v / (1 - beta_2^t)) + epsilon), by which this step multiplies each coordinate."""
        return (self.second / (1 - BETA_2**self.steps)).sqrt_().add_(EPSILON).reciprocal_()

    def step(self, update: Tensor, learning_rate: float, rescaling: Tensor | None = None) -> Tensor:
        """Finish the step: decay the weights, move along the momentum of ``update``; returns the move, without decay.

        Args:
            update: (parameters,) direction whose descent is wanted.
            learning_rate: of this step.
            rescaling: what `rescaling` gave, when it was asked already.
        """
        self.first.lerp_(update, 1 - BETA_1)
        scale = self.rescaling() if rescaling is None else rescaling
        move = self.first * scale
        move.mul_(-learning_rate / (1 - BETA_1**self.steps))
        self._parameters.mul_(1 - learning_rate * self._weight_decay).add_(move)
        return move
