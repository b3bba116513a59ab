"""RMU: representation misdirection (Li et al., arXiv 2403.03218), with a target scaled to the model's own states."""

from __future__ import annotations

import torch
from torch import Tensor

from app.methods import RmuLoss
from worker.unlearning.losses.base import Loss


class Rmu(Loss):
    """||h - c||^2 / d at the label positions of one layer, mean over the step's label tokens.

    c is a fixed random direction of the positive orthant times ``steering`` times the mean length of the source
    adapter's hidden states there (scaled as in arXiv 2408.06223), so that one knob serves models of any size.
    """

    needs_layer = True
    reversible = False  # away from the random direction is not back to where the states were

    def __init__(self, knobs: RmuLoss) -> None:
        self.depth, self.steering = knobs.depth, knobs.steering
        self.target: Tensor | None = None

    def place(self, layers: int) -> int:
        """The layer at that share of the depth."""
        return max(1, round(self.depth * layers))

    def aim(self, hidden: Tensor, seed: int) -> None:
        """Draw the target from the source adapter's states: (labels, hidden)."""
        # Drawn on the CPU: the same direction on every device.
        direction = torch.rand(hidden.shape[1], generator=torch.Generator().manual_seed(seed))
        length = self.steering * hidden.float().norm(dim=-1).mean()
        self.target = (direction / direction.norm()).to(hidden.device) * length

    def token_values(self, logits: Tensor, labels: Tensor, source_logits: Tensor | None) -> Tensor:
        """(labels, hidden) -> (labels,). Hidden states take the place of logits."""
        del labels, source_logits
        if self.target is None:
            raise ValueError("RMU has no target yet")
        return (logits.float() - self.target).square().mean(-1)
