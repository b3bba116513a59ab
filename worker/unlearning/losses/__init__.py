"""The losses: a file for each, named by its ``type``, with one subclass of `Loss` in it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from app.methods import ForgetLoss, RetainLoss
from worker.unlearning.losses.base import Loss, Rows, StepSize

__all__ = ["Loss", "Rows", "StepSize", "build_loss"]


def build_loss(knobs: ForgetLoss | RetainLoss) -> Loss:
    """The loss with these knobs. Its file has the name of the knobs' ``type``."""
    module = import_module(f"{__name__}.{knobs.type}")
    found: list[Any] = [
        member
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, Loss) and member.__module__ == module.__name__
    ]
    (kind,) = found
    loss: Loss = kind(knobs)
    return loss
