"""What a caller may ask of the training.

A ``*Request`` is what a caller writes, where knobs may be ``"auto"``; its resolved form is what a job stores, with
every knob that changes the result a plain value, so that a run can be repeated from its job alone. The ``type`` of a
method names its combiner: how the gradients of both losses become one update (docs/method.md).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, Tag, TypeAdapter, model_validator

from app.methods.fields import (
    MAX_STEPS,
    Auto,
    BatchSize,
    Gamma,
    GradientCheckpointing,
    MicroBatchSize,
    Steps,
    Strict,
    Weight,
    by_type,
    members,
)
from app.methods.losses import ForgetLoss, NllLoss, NpoLoss, RetainLoss
from app.methods.retraining import AutoRequest, RetrainMethod, RetrainRequest
from app.methods.schedules import MetaCycles, Schedule, Stretch
from app.methods.stopping import StopAtTargets, StopRule

AUTO_GAMMA = 0.5
MIN_AUTO_STEPS = 240
MAX_AUTO_STEPS = 4000
AUTO_FORGET_EPOCHS = 24

_GAMMA_SCALE = Field(
    description='"relative" makes gamma scale-free: the part that forgets is gamma times as long as the part that '
    'retains usually is, whatever the loss. "absolute" multiplies the forget gradient, as the paper does.'
)
_SCHEDULE = Field(description="How steps are spread over forgetting and retaining: at once, or in turns.")
_GammaScale = Annotated[Literal["relative", "absolute"], _GAMMA_SCALE]


class _Knobs(Strict):
    """What every method has and nothing has to resolve."""

    forget_loss: Annotated[ForgetLoss, Field(description="What makes the forget set unlikely.")] = NpoLoss()
    retain_loss: Annotated[RetainLoss, Field(description="What keeps the retain set.")] = NllLoss()
    anchor: Annotated[
        Literal["base", "none"],
        Field(
            description='"base" draws every token of a forget answer to its likelihood under the base model alone, '
            'from both sides, so that nothing is pushed below "never seen". "none" leaves the end to the forget '
            "loss; a fresh adapter, which starts as the base model, needs it."
        ),
    ] = "base"
    stop: Annotated[StopRule, Field(description="When training ends, and which point is kept.")] = StopAtTargets()
    schedule: Annotated[Schedule, _SCHEDULE] = Stretch()
    learning_rate_schedule: Annotated[
        Literal["constant", "linear", "cosine"],
        Field(description="Course of the learning rate after the warm-up: constant, or down to zero."),
    ] = "constant"
    warmup_steps: Annotated[
        int,
        Field(ge=0, le=10_000, description="Steps over which the learning rate rises linearly to its value."),
    ] = 0
    forget_batch_size: Annotated[BatchSize, Field(description="Forget sequences per optimizer step.")] = 8
    retain_batch_size: Annotated[BatchSize, Field(description="Retain sequences per optimizer step.")] = 8
    learning_rate: Annotated[float, Field(gt=0, le=1, description="Peak learning rate of AdamW.")] = 5e-4
    weight_decay: Annotated[float, Field(ge=0, le=1, description="Decoupled: acts on the factors.")] = 0.0
    max_grad_norm: Annotated[
        float, Field(gt=0, le=1e6, description="Norm to which the combined update is clipped, before AdamW.")
    ] = 1.0
    max_length: Annotated[
        int,
        Field(
            ge=16,
            le=131_072,
            description="Tokens per sequence. A longer record is cut into windows, so that none of it is left out.",
        ),
    ] = 512
    micro_batch_size: MicroBatchSize = "auto"
    passes: Annotated[
        Literal["auto", "one", "two"],
        Field(
            description="Both gradients from one concatenated pass, or from two, which needs less memory. Never "
            'changes the result beyond rounding. "auto" takes one where it is faster, two when memory runs out.'
        ),
    ] = "auto"
    gradient_checkpointing: GradientCheckpointing = False


class _Request(_Knobs):
    """What a caller writes."""

    # What lasts, by benchmarks/durability.py. A stored method that names no schedule is from before there were any.
    schedule: Annotated[Schedule, _SCHEDULE] = MetaCycles()

    steps: Annotated[
        Steps | Auto,
        Field(
            description=f'Most optimizer steps. "auto" passes over the forget set {AUTO_FORGET_EPOCHS} times, at '
            f"least {MIN_AUTO_STEPS} and at most {MAX_AUTO_STEPS} steps; a schedule in turns says itself how many."
        ),
    ] = "auto"

    @model_validator(mode="after")
    def _within_the_most_steps(self) -> Self:
        planned = self.schedule.planned_steps() if self.steps == "auto" else None
        if planned is not None and planned > MAX_STEPS:
            raise ValueError(f"the schedule comes to {planned} steps, more than {MAX_STEPS}; shorten it")
        return self

    def resolve(self, forget_records: int) -> Method:
        """Replace every "auto" that changes the result by the value that it stands for.

        Args:
            forget_records: number of records in the forget set, at least 1.
        """
        return METHOD.validate_python(self._resolved(forget_records))

    def _resolved(self, forget_records: int) -> dict[str, Any]:
        batches = math.ceil(forget_records / self.forget_batch_size)
        schedule = self.schedule.for_batches(batches)
        knobs = self.model_dump() | {"schedule": schedule.model_dump()}
        if self.steps == "auto":
            usual = min(max(MIN_AUTO_STEPS, AUTO_FORGET_EPOCHS * batches), MAX_AUTO_STEPS)
            knobs["steps"] = min(schedule.planned_steps() or usual, MAX_STEPS)
        return knobs


class _AutoGamma(_Request):
    """A gamma that may be left to the service."""

    gamma: Annotated[
        Gamma | Auto,
        Field(
            description='Rate at which the level with priority progresses. "auto" is relative and serves every loss.'
        ),
    ] = "auto"
    gamma_scale: Annotated[
        _GammaScale | None,
        Field(description=f'{_GAMMA_SCALE.description} Left out: relative where gamma is "auto", else absolute.'),
    ] = None

    def _resolved(self, forget_records: int) -> dict[str, Any]:
        knobs = super()._resolved(forget_records)
        auto = self.gamma == "auto"
        knobs["gamma"] = AUTO_GAMMA if auto else self.gamma
        knobs["gamma_scale"] = self.gamma_scale or ("relative" if auto else "absolute")
        return knobs


class _BlurKnobs(Strict):
    type: Literal["blur"] = "blur"
    projection: Annotated[
        Literal["raw", "preconditioned"],
        Field(
            description="Metric of the projection: of the gradients as they are, or as AdamW rescales them, so that "
            "its step without momentum never raises the forget loss to first order."
        ),
    ] = "raw"
    scope: Annotated[
        Literal["global", "layer", "module"],
        Field(description="One projection over all factors, one per decoder layer, or one per adapted module."),
    ] = "global"


class BlurRequest(_BlurKnobs, _AutoGamma):
    """BLUR (arXiv 2506.08164): forgetting has priority; retaining uses what is orthogonal to it."""


class BlurMethod(_BlurKnobs, _Knobs):
    """BLUR with every knob resolved."""

    gamma: Gamma
    gamma_scale: _GammaScale = "absolute"
    steps: Steps


class _ForgetUpperKnobs(Strict):
    type: Literal["forget_upper"] = "forget_upper"


class ForgetUpperRequest(_ForgetUpperKnobs, _AutoGamma):
    """The paper's ablation: BLUR with the levels swapped, so that retaining has priority."""


class ForgetUpperMethod(_ForgetUpperKnobs, _Knobs):
    """Forget-upper with every knob resolved."""

    gamma: Gamma
    gamma_scale: _GammaScale = "absolute"
    steps: Steps


class _WeightedSumKnobs(Strict):
    type: Literal["weighted_sum"] = "weighted_sum"
    gamma: Annotated[Gamma, Field(description="Weight of the forget loss.")] = 1.0
    retain_weight: Annotated[Weight, Field(description="Weight of the retain loss.")] = 1.0


class WeightedSumRequest(_WeightedSumKnobs, _Request):
    """A weighted sum of both losses: NPO, SimNPO, GradDiff and the others as they were published."""


class WeightedSumMethod(_WeightedSumKnobs, _Knobs):
    """A weighted sum with every knob resolved."""

    steps: Steps


class _PduKnobs(Strict):
    type: Literal["pdu"] = "pdu"
    max_retain_loss: Annotated[
        float, Field(gt=0, le=100, description="Retain loss in nats per token that may not be exceeded.")
    ] = 0.1
    initial_weight: Annotated[Weight, Field(description="Weight of the retain loss at the start.")] = 1.0
    dual_rate: Annotated[
        float, Field(gt=0, le=1000, description="How fast the weight follows the retain loss's excess.")
    ] = 5.0
    dual_warmup_steps: Annotated[int, Field(ge=0, le=10_000, description="Steps in which the weight stays.")] = 5


class PduRequest(_PduKnobs, _Request):
    """Primal-dual unlearning: forget as far as the retain loss stays below a limit (dual ascent)."""


class PduMethod(_PduKnobs, _Knobs):
    """Primal-dual unlearning with every knob resolved."""

    steps: Steps


MethodRequest = Annotated[
    Annotated[BlurRequest, Tag("blur")]
    | Annotated[WeightedSumRequest, Tag("weighted_sum")]
    | Annotated[ForgetUpperRequest, Tag("forget_upper")]
    | Annotated[PduRequest, Tag("pdu")],
    by_type("blur"),
]
"""A method that unlearns from the adapter as it is."""

WantedMethod = Annotated[
    Annotated[BlurRequest, Tag("blur")]
    | Annotated[WeightedSumRequest, Tag("weighted_sum")]
    | Annotated[ForgetUpperRequest, Tag("forget_upper")]
    | Annotated[PduRequest, Tag("pdu")]
    | Annotated[RetrainRequest, Tag("retrain")]
    | Annotated[AutoRequest, Tag("auto")],
    by_type("blur"),
]
"""What a job may ask for."""
Method = Annotated[
    Annotated[BlurMethod, Tag("blur")]
    | Annotated[WeightedSumMethod, Tag("weighted_sum")]
    | Annotated[ForgetUpperMethod, Tag("forget_upper")]
    | Annotated[PduMethod, Tag("pdu")]
    | Annotated[RetrainMethod, Tag("retrain")],
    by_type("blur"),
]


# Knobs that came after version 0.1, where their default is not what version 0.1 did.
_VERSION_0_1 = {"stop": {"type": "steps"}, "anchor": "none", "gamma_scale": "absolute"}


def _complete(value: object) -> object:
    """Jobs of version 0.1 name fewer knobs; later ones name them all."""
    if not isinstance(value, dict):
        return value
    if isinstance(value.get("schedule"), str):
        # The name of the learning rate's course, before there were schedules of steps.
        value = value | {"learning_rate_schedule": value["schedule"], "schedule": {"type": "stretch"}}
    return value if "stop" in value or value.get("type") == "retrain" else _VERSION_0_1 | value


StoredMethod = Annotated[Method, BeforeValidator(_complete)]
"""A method as a job holds it, of this version or an earlier one."""

METHOD_REQUEST: TypeAdapter[MethodRequest] = TypeAdapter(MethodRequest)
METHOD: TypeAdapter[Method] = TypeAdapter(Method)
STORED_METHOD: TypeAdapter[Method] = TypeAdapter(StoredMethod)
METHOD_REQUESTS = members(WantedMethod)
UNLEARNING_REQUESTS = members(MethodRequest)
