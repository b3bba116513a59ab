"""Training an adapter anew instead of unlearning from it, and leaving the choice to the service."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from app.methods.fields import GradientCheckpointing, MicroBatchSize, Strict
from app.methods.losses import NllLoss
from app.methods.recipe import Course, Epochs, Recipe
from app.methods.schedules import Training
from app.methods.stopping import StopAtSteps

MAX_TRAINING_STEPS = 100_000_000


class RetrainRequest(Strict):
    """Train the adapter anew from the base model, by its recorded recipe, on its training set without the records."""

    type: Literal["retrain"] = "retrain"
    micro_batch_size: MicroBatchSize = "auto"
    gradient_checkpointing: GradientCheckpointing = False

    def resolve(self, recipe: Recipe, sequences: int) -> RetrainMethod:
        """The method by a recipe.

        Args:
            recipe: the adapter's.
            sequences: training sequences that are left.
        """
        knobs = recipe.model_dump() | self.model_dump()
        steps = recipe.steps or steps_of(recipe.epochs or 1, sequences, recipe.batch_size)
        return RetrainMethod.model_validate(knobs | {"steps": steps})


class RetrainMethod(Course):
    """Training anew with every knob resolved. Where it has `epochs`, the worker counts `steps` again.

    What the engine asks of every method and training anew has no choice of is a constant.
    """

    type: Literal["retrain"] = "retrain"
    epochs: Epochs | None = None
    steps: Annotated[int, Field(ge=1, le=MAX_TRAINING_STEPS, description="Optimizer steps.")]
    micro_batch_size: MicroBatchSize = "auto"
    gradient_checkpointing: GradientCheckpointing = False

    forget_loss: ClassVar[NllLoss] = NllLoss()
    retain_loss: ClassVar[NllLoss] = NllLoss()
    anchor: ClassVar[Literal["base", "none"]] = "none"
    stop: ClassVar[StopAtSteps] = StopAtSteps()
    schedule: ClassVar[Training] = Training()
    passes: ClassVar[Literal["auto", "one", "two"]] = "auto"

    @property
    def forget_batch_size(self) -> int:
        """As many as anybody would take who trains further."""
        return self.batch_size

    @property
    def retain_batch_size(self) -> int:
        """Sequences per step."""
        return self.batch_size

    def on(self, sequences: int) -> RetrainMethod:
        """The method as it is carried out on so many sequences, at least 1."""
        if self.epochs is None:
            return self
        return self.model_copy(update={"steps": steps_of(self.epochs, sequences, self.batch_size)})


def steps_of(epochs: int, sequences: int, batch_size: int) -> int:
    """Optimizer steps in which every sequence is seen so many times."""
    return min(epochs * math.ceil(sequences / batch_size), MAX_TRAINING_STEPS)


class AutoRequest(Strict):
    """Train anew where that is exact and costs little more than unlearning would, else unlearn as by default."""

    type: Literal["auto"] = "auto"
