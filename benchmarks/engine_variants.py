"""The ways to take a step that are compared, behind one face."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

import torch
from torch import Tensor

from app.methods import BlurMethod, StopAtSteps
from benchmarks.engine_models import BATCH_SIZE, Case
from benchmarks.reference_blur import ReferenceBlur
from benchmarks.weighted_sum import WeightedSum
from worker.unlearning.adamw import AdamW
from worker.unlearning.combiners import Combined, Combiner
from worker.unlearning.step import ONE_PASS_DEVICES, Stepper

SUM, REFERENCE = "weighted sum", "reference recipe"
ONE_PASS, TWO_PASSES = "Lethe, one pass", "Lethe, two passes"
WITH_ANCHOR = (
    "Lethe, base anchor"  # in the form that is picked, with the default knob that the others know nothing of
)
VARIANTS = (SUM, TWO_PASSES, ONE_PASS, WITH_ANCHOR, REFERENCE)
METHOD = BlurMethod(
    steps=1,
    gamma=1.0,
    anchor="none",
    stop=StopAtSteps(),
    forget_batch_size=BATCH_SIZE,
    retain_batch_size=BATCH_SIZE,
)


class Variant(Protocol):
    """A way to take a step."""

    def step(self, forget: Sequence[int], retain: Sequence[int]) -> object:
        """One optimizer step on these records. May return before the device is done."""
        ...

    def update(self, forget: Sequence[int], retain: Sequence[int]) -> Tensor:
        """What a step on these records would clip and take: (parameters,). Changes nothing."""
        ...


class Lethe:
    """The engine of this repository."""

    def __init__(self, case: Case, stack: ExitStack, **knobs: str) -> None:
        method = METHOD.model_copy(update=knobs)
        self._stepper = Stepper(case.twin(), case.tokenizer, case.forget, case.retain, method, case.seed)
        # As in a run: the model is wired once, not in every step.
        stack.enter_context(self._stepper.computing())

    def step(self, forget: Sequence[int], retain: Sequence[int]) -> object:
        """One optimizer step on these records."""
        return self._stepper.step(forget, retain, METHOD.learning_rate)

    def update(self, forget: Sequence[int], retain: Sequence[int]) -> Tensor:
        """BLUR's update."""
        return self._watched(forget, retain).update

    def weighted_sum(self, forget: Sequence[int], retain: Sequence[int]) -> Tensor:
        """What the weighted sum would make of the same two gradients."""
        return self._watched(forget, retain).weighted_sum

    def _watched(self, forget: Sequence[int], retain: Sequence[int]) -> _Watching:
        shipped = self._stepper.combiner
        self._stepper.combiner = watching = _Watching(shipped)
        try:
            self._stepper.step(forget, retain, 0.0)
        finally:
            self._stepper.combiner = shipped
        return watching


class _Watching:
    """A combiner that keeps what goes into another one and what comes out."""

    def __init__(self, shipped: Combiner) -> None:
        self.state = shipped.state
        self._shipped = shipped
        self.update = self.weighted_sum = torch.zeros(0)

    def combine_(self, forget: Tensor, retain: Tensor, retain_loss: Tensor, optimizer: AdamW) -> Combined:
        """As the other."""
        self.weighted_sum = retain + METHOD.gamma * forget
        combined = self._shipped.combine_(forget, retain, retain_loss, optimizer)
        self.update = combined.update.clone()
        return combined


def picked(device: torch.device) -> str:
    """The form that the engine takes on this device by itself."""
    return ONE_PASS if device.type in ONE_PASS_DEVICES else TWO_PASSES


def build_variant(name: str, case: Case, stack: ExitStack) -> Variant:
    """The variant of that name, one of `VARIANTS`, usable until the stack is closed."""
    if name == SUM:
        return WeightedSum(case, METHOD)
    if name == REFERENCE:
        return ReferenceBlur(case, METHOD)
    if name == WITH_ANCHOR:
        return Lethe(case, stack, anchor="base")
    return Lethe(case, stack, passes="one" if name == ONE_PASS else "two")


def disagreement(variants: dict[str, Variant], batch: tuple[Sequence[int], Sequence[int]]) -> dict[str, float]:
    """How far each variant's update is from the engine's on one batch: norm of the difference over the norm."""
    ours = variants[TWO_PASSES]
    if not isinstance(ours, Lethe):
        raise TypeError("nothing to compare with")
    expected = {name: ours.update(*batch) for name in (ONE_PASS, REFERENCE)}
    expected[SUM] = ours.weighted_sum(*batch)
    return {
        name: float((variants[name].update(*batch) - wanted).norm() / wanted.norm())
        for name, wanted in expected.items()
        if name in variants
    }
