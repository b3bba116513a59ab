"""A simulated attacker: somebody who has half of the forget set and trains on it, to win the other half back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.unlearning.adamw import AdamW
from worker.unlearning.factors import Factors


@dataclass(frozen=True)
class Attack:
    """What the attacker does beside one step of a run.

    Attributes:
        begins: whether it is a new one, which starts where the factors are.
        batch: forget items that it trains on.
        held_out: forget items that it does not have.
        learning_rate: of its AdamW.
    """

    begins: bool
    batch: list[int]
    held_out: list[int]
    learning_rate: float


class Attacker:
    """How far the attacker has come from the factors, and its AdamW.

    It does not start anew beside every step of the run: it goes on from where it was, seen from the factors, which a
    step hardly moves. An attack of many steps so costs one of its own for each step of the run.

    Attributes:
        way: from the factors to the attacker's, (parameters,).
        optimizer: AdamW of the attacker's factors.
    """

    def __init__(self, factors: Factors) -> None:
        self._factors = factors
        self.way = factors.new_vector()
        self.optimizer = AdamW(factors.vector, weight_decay=0.0)

    @property
    def state(self) -> dict[str, Tensor]:
        """What it goes on from, to be kept and to be written to; `optimizer.steps` belongs to it."""
        return {"way": self.way, "first_moment": self.optimizer.first, "second_moment": self.optimizer.second}

    def restart(self) -> None:
        """Start where the factors are, with no momentum."""
        self.way.zero_()
        self.optimizer.restart()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the model computes with the attacker's factors, and `step` may be called."""
        start = self._factors.vector.clone()
        with self._factors.holding(start + self.way):
            yield
            torch.sub(self._factors.vector, start, out=self.way)

    def step(self, gradient: Tensor, learning_rate: float) -> None:
        """Train the attacker's factors along a gradient, (parameters,)."""
        self.optimizer.observe(gradient)
        self.optimizer.step(gradient, learning_rate)
