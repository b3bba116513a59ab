"""Negative log-likelihood."""

from __future__ import annotations

from app.methods import NllLoss
from worker.unlearning.losses.base import Loss


class Nll(Loss):
    """-log p(y), mean over the step's label tokens: what `Loss` is by itself."""

    def __init__(self, knobs: NllLoss) -> None:
        del knobs
