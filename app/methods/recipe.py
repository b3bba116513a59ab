"""How an adapter was trained: recorded with its training set, so that it can be trained anew in the same way."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from app.methods.fields import BatchSize, Steps, Strict

Epochs = Annotated[int, Field(ge=1, le=1000)]


class Course(Strict):
    """What a recipe says but for how long it goes."""

    learning_rate: Annotated[float, Field(gt=0, le=1, description="Peak learning rate of AdamW.")]
    batch_size: Annotated[BatchSize, Field(description="Sequences per optimizer step.")] = 8
    learning_rate_schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Field(description="Course of the learning rate after the warm-up: constant, or down to zero."),
    ] = "linear"
    warmup_steps: Annotated[
        int, Field(ge=0, le=10_000, description="Steps over which the learning rate rises linearly to its value.")
    ] = 0
    weight_decay: Annotated[float, Field(ge=0, le=1, description="Decoupled: acts on the factors.")] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0, le=1e6, description="Norm to which the gradient is clipped.")] = 1.0
    max_length: Annotated[
        int, Field(ge=16, le=131_072, description="Tokens per sequence; a longer record is cut into windows.")
    ] = 512
    supervised: Annotated[
        Literal["answer", "all"],
        Field(
            description='Tokens that are learned: "answer" is the completion or the last assistant turn (all of a '
            'plain text), as in unlearn jobs; "all" is the prompt, too.'
        ),
    ] = "answer"
    seed: Annotated[
        int, Field(ge=0, lt=2**31, description="Of the fresh factors and of the order of the records.")
    ] = 0


class Recipe(Course):
    """How an adapter was trained; rank, alpha and target modules are the adapter's own.

    AdamW on the mean negative log-likelihood of a batch's label tokens, without dropout, in float32. Either `epochs`
    or `steps` is given.
    """

    epochs: Annotated[Epochs | None, Field(description="Passes over the training set.")] = None
    steps: Annotated[Steps | None, Field(description="Optimizer steps, in place of epochs.")] = None

    @model_validator(mode="after")
    def _of_one_length(self) -> Self:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps")
        return self
