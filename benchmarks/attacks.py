"""Further training that may bring forgotten records back, by people who mean it and people who do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worker.evaluation.battery.base import ModelName
from worker.evaluation.battery.quantization import VARIANTS
from worker.evaluation.battery.relearning import halves
from worker.evaluation.loaded import LoadedSubject
from worker.evaluation.quick import shown
from worker.evaluation.rounding import rounded_layers
from worker.evaluation.tuning import Tuner, Tuning
from worker.unlearning.encoding import Example

BATCH, MAX_GRAD_NORM = 8, 1.0
EPOCHS = 3  # of innocent further training
STEPS = (10, 20, 50)
SGD_RATE, SGD_MOMENTUM = 0.05, 0.9


class _Sgd:
    """SGD with momentum, in the place of a tuner's AdamW."""

    def __init__(self, parameters: Tensor) -> None:
        self._parameters, self._velocity = parameters, torch.zeros_like(parameters)
        self.steps = 0

    def observe(self, _update: Tensor) -> None:
        self.steps += 1

    def step(self, update: Tensor, learning_rate: float) -> None:
        self._velocity.mul_(SGD_MOMENTUM).add_(update)
        self._parameters.sub_(self._velocity, alpha=learning_rate)


class _SgdTuner(Tuner):
    def __init__(self, *arguments: Any) -> None:  # noqa: ANN401 - those of a tuner
        super().__init__(*arguments)
        self._optimizer = _Sgd(self._factors.vector)  # type: ignore[assignment] # the two methods that are used


@dataclass(frozen=True)
class Attacker:
    """Who trains on half of the forgotten records.

    Attributes:
        name: in the table.
        rate: learning rate, as a multiple of the training's; of SGD as it is.
        sgd: SGD with momentum instead of AdamW.
        on_top: trains a fresh LoRA over the frozen adapter.
    """

    name: str
    rate: float = 1.0
    sgd: bool = False
    on_top: bool = False


SIMULATED = Attacker("AdamW")  # the kind that `meta_cycles` trains against
UNSEEN = (
    Attacker("AdamW, 4 times the rate", rate=4.0),
    Attacker("AdamW, a quarter of the rate", rate=0.25),
    Attacker("SGD", rate=SGD_RATE, sgd=True),
    Attacker("fresh LoRA", on_top=True),
)


class Attacks:
    """All of them on the models of one subject.

    Args:
        subject: with the sets "forget" and "retain".
        rate: learning rate of the adapter's training.
    """

    def __init__(self, subject: LoadedSubject, rate: float) -> None:
        self._subject, self._rate = subject, rate
        self._known, self._asked = halves(subject.examples("forget"), subject.seed)

    def resurfacing(self, name: ModelName) -> dict[str, float]:
        """Forget probability after epochs on retain records alone, at a quarter of the rate and at the rate."""
        found = {}
        for label, part in (("low_lr", 0.25), ("high_lr", 1.0)):
            with self._subject.model(name) as model:
                tuner = self._tuner(model, self._subject.examples("retain"), SIMULATED, part)
                tuner.train_to(EPOCHS * tuner.epoch)
                found[label] = self._probability(model, self._subject.examples("forget"))
        return found

    def relearning(self, name: ModelName, attacker: Attacker) -> dict[str, float]:
        """Probability of one half after 10, 20 and 50 steps on the other; the mean of both ways round."""
        there = self._relearned(name, attacker, self._known, self._asked)
        back = self._relearned(name, attacker, self._asked, self._known)
        return {step: (there[step] + back[step]) / 2 for step in there}

    def _relearned(
        self, name: ModelName, attacker: Attacker, known: Sequence[Example], asked: Sequence[Example]
    ) -> dict[str, float]:
        subject, found = self._subject, {}
        with subject.on_top(name, subject.seed) if attacker.on_top else subject.model(name) as model:
            tuner = self._tuner(model, known, attacker, attacker.rate)
            for step in STEPS:
                tuner.train_to(step)
                found[str(step)] = self._probability(model, asked)
        return found

    def rounding(self, name: ModelName) -> dict[str, float]:
        """Forget probability over rounded weights, the adapter beside a rounded base or merged before."""
        found = {}
        with self._subject.model(name) as model:
            for variant in VARIANTS:
                with rounded_layers(model, variant.scheme, merged=variant.merged):
                    found[variant.title] = self._probability(model, self._subject.examples("forget"))
        return found

    def all_together(self, name: ModelName) -> float:
        """Probability of one half after innocent training, 20 steps on the other half, and rounding to int4."""
        with self._subject.model(name) as model:
            tuner = self._tuner(model, self._subject.examples("retain"), SIMULATED, 1.0)
            tuner.train_to(EPOCHS * tuner.epoch)
            self._tuner(model, self._known, SIMULATED, 1.0).train_to(20)
            with rounded_layers(model, "int4", merged=False):
                return self._probability(model, self._asked)

    def everything(self, name: ModelName) -> dict[str, Any]:
        """Every measure of a model."""
        relearning = self.relearning(name, SIMULATED)
        unseen = {attacker.name: self.relearning(name, attacker) for attacker in UNSEEN}
        return {
            "resurfacing": self.resurfacing(name),
            "relearning": relearning,
            "unseen": unseen,
            "rounding": self.rounding(name),
            "all_together": self.all_together(name),
        }

    def _tuner(self, model: Any, examples: Sequence[Example], attacker: Attacker, rate: float) -> Tuner:  # noqa: ANN401
        kind = _SgdTuner if attacker.sgd else Tuner
        rate = rate if attacker.sgd else rate * self._rate
        return kind(model, self._subject.tokenizer, examples, Tuning(rate, BATCH, MAX_GRAD_NORM, self._subject.seed))

    def _probability(self, model: Any, examples: Sequence[Example]) -> float:  # noqa: ANN401
        return shown(model, self._subject.tokenizer, examples, self._subject.batch_size).probability


def worst_beyond(found: Mapping[str, Mapping[str, float]], never_seen: Mapping[str, Mapping[str, float]]) -> float:
    """By how much the worst attacker gets more out of a model than out of one that never saw the records."""
    return max(found[name][step] - never_seen[name][step] for name in found for step in found[name])
