"""What a caller may ask of the training and of the gate: the one contract that app and worker share.

Pydantic only, so that the web side can read it without torch. A ``*Request`` model is what a caller writes,
where every knob may be left out or be ``"auto"``; `BlurMethod` and `Policy` are what a job stores, with every knob
a plain value, so that a run can be repeated from its job alone.

Defaults are those that reached the level of a never-trained control on the demo: NPO with beta 0.03, gamma 0.05,
learning rate 5e-4, 80 steps (docs/method.md).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

AUTO_GAMMA = 0.05
MIN_AUTO_STEPS = 80
MAX_AUTO_STEPS = 4000
AUTO_FORGET_EPOCHS = 16

type_auto = Literal["auto"]


class _Strict(BaseModel):
    """Refuses unknown fields, infinities and NaN; instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class NpoLoss(_Strict):
    """Negative preference optimisation: per sequence, summed answer log-ratio against the source adapter."""

    type: Literal["npo"] = "npo"
    beta: Annotated[
        float,
        Field(
            gt=0,
            le=10,
            description="Inverse temperature. Forgetting fades once a sequence is about 1/beta nats less likely "
            "than it was, so a smaller beta forgets deeper.",
        ),
    ] = 0.03


class NllLoss(_Strict):
    """Negative log-likelihood of the retain answers: mean over all answer tokens of the optimizer step."""

    type: Literal["nll"] = "nll"


_Steps = Annotated[int, Field(ge=1, le=100_000)]
_Gamma = Annotated[float, Field(ge=0, le=1000)]


class _BlurKnobs(_Strict):
    """Knobs of BLUR that need no resolving."""

    type: Literal["blur"] = "blur"
    forget_loss: NpoLoss = NpoLoss()
    retain_loss: NllLoss = NllLoss()
    projection: Annotated[
        Literal["raw"], Field(description="Metric of the projection: raw gradients of the LoRA factors.")
    ] = "raw"
    scope: Annotated[Literal["global"], Field(description="One projection over all trained parameters.")] = "global"
    forget_batch_size: Annotated[int, Field(ge=1, le=1024, description="Forget records per optimizer step.")] = 8
    retain_batch_size: Annotated[int, Field(ge=1, le=1024, description="Retain records per optimizer step.")] = 8
    micro_batch_size: Annotated[
        int, Field(ge=1, le=1024, description="Records per forward pass. Changes memory, never the result.")
    ] = 8
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 5e-4
    warmup_steps: Annotated[
        int,
        Field(ge=0, le=10_000, description="Steps over which the learning rate rises linearly to its value."),
    ] = 0
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
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


class BlurMethodRequest(_BlurKnobs):
    """BLUR as a caller asks for it. Everything may be left out."""

    gamma: Annotated[
        _Gamma | type_auto, Field(description="Rate at which forgetting must progress; see docs/method.md.")
    ] = "auto"
    steps: Annotated[
        _Steps | type_auto,
        Field(description='Optimizer steps. "auto" passes over the forget set 16 times, at least 80 steps.'),
    ] = "auto"

    def resolve(self, forget_records: int) -> BlurMethod:
        """Replace every "auto" by the value that it stands for.

        Args:
            forget_records: number of records in the forget set, at least 1.
        """
        knobs = self.model_dump()
        if self.gamma == "auto":
            knobs["gamma"] = AUTO_GAMMA
        if self.steps == "auto":
            batches = math.ceil(forget_records / self.forget_batch_size)
            knobs["steps"] = min(max(MIN_AUTO_STEPS, AUTO_FORGET_EPOCHS * batches), MAX_AUTO_STEPS)
        return BlurMethod.model_validate(knobs)


class BlurMethod(_BlurKnobs):
    """BLUR with every knob resolved: enough, with data and seed, to repeat a run."""

    gamma: _Gamma
    steps: _Steps


class Policy(_Strict):
    """Acceptance thresholds of the gate. Metrics are means over records, in [0, 1] (docs/evaluation.md).

    Absolute limits apply to the forget set after unlearning. Ratios compare the result with the source adapter.
    """

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")] = "default"
    version: Annotated[int, Field(ge=1)] = 1
    max_forget_probability: Annotated[float, Field(ge=0, le=1)] = 0.20
    max_forget_extraction_strength: Annotated[float, Field(ge=0, le=1)] = 0.10
    max_forget_rouge_l_recall: Annotated[float, Field(ge=0, le=1)] = 0.45
    min_retain_probability_ratio: Annotated[float, Field(ge=0, le=1)] = 0.90
    min_retain_rouge_l_recall_ratio: Annotated[float, Field(ge=0, le=1)] = 0.90


DEFAULT_POLICY = Policy()
POLICIES: dict[str, Policy] = {DEFAULT_POLICY.name: DEFAULT_POLICY}
