"""What a result must reach: which probes look at it, and the limits that their numbers are held against."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from app.methods.fields import Strict

ProbeName = Literal[
    "recall",
    "utility",
    "rephrasing",
    "membership",
    "quantization",
    "integrity",
    "history",
    "resurfacing",
    "sampling",
    "relearning",
]
PROBES: tuple[ProbeName, ...] = get_args(ProbeName)

_Share = Annotated[float, Field(ge=0, le=1)]
_Limit = _Share | None
_Nats = Annotated[float, Field(ge=0, le=100)] | None


LIMITS: dict[str, ProbeName] = {
    "max_forget_probability": "recall",
    "max_forget_extraction_strength": "recall",
    "max_forget_rouge_l_recall": "recall",
    "max_forget_nll_excess": "recall",
    "min_retain_probability_ratio": "utility",
    "min_retain_rouge_l_recall_ratio": "utility",
    "min_neighbour_probability_ratio": "utility",
    "max_general_nll_increase": "utility",
    "max_rephrased_probability": "rephrasing",
    "max_rephrased_extraction_strength": "rephrasing",
    "max_membership_auc_distance": "membership",
    "max_quantized_probability": "quantization",
    "max_quantized_extraction_strength": "quantization",
    "max_history_probability": "history",
    "max_history_extraction_strength": "history",
    "max_resurfaced_probability": "resurfacing",
    "max_resurfaced_extraction_strength": "resurfacing",
    "max_sampled_leak": "sampling",
    "max_relearned_excess": "relearning",
}
"""Which probe measures for a threshold."""


NEED_NEVER_SEEN = ("max_forget_nll_excess", "max_membership_auc_distance", "max_relearned_excess")
"""Thresholds on the distance from a model that never saw the records; where the base knows them there is none."""


class Targets(Strict):
    """Where training may stop, by the quick probe of the stop rule (means over sampled sequences, in [0, 1])."""

    max_forget_probability: _Share
    max_forget_extraction_strength: _Share
    min_retain_probability_ratio: _Share


LEAST_FOR_MEMBERSHIP = 8
"""Records of the forget and of the holdout set, each, below which an AUC says nothing that a gate may go by."""


class Policy(Strict):
    """Acceptance thresholds of the gate, and the probes that measure for them (docs/evaluation.md).

    Metrics are means over records. Limits on the forget set hold for the result; where the base model alone shows
    more than the limit, its own value is the limit. The reference is a control, else the base model alone. Ratios
    compare the result with the source. A limit of null is not judged: the number is measured and reported. The
    thresholds named ``training_`` do not gate: training stops where they hold, so they leave the gate a margin.
    """

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")] = "default"
    version: Annotated[int, Field(ge=1)] = 1
    description: Annotated[str, Field(max_length=500)] = ""
    probes: Annotated[
        tuple[ProbeName, ...], Field(min_length=1, description="What is looked at. A job may add to it.")
    ] = ("recall", "utility")
    max_attempts: Annotated[
        int,
        Field(ge=1, le=4, description="Trainings in one run: each failed gate is followed by a stronger method."),
    ] = 1
    exact_if_cheaper_than: Annotated[
        float,
        Field(
            ge=0,
            le=1000,
            description='The method "auto" trains anew where that costs at most so many times what unlearning costs.',
        ),
    ] = 2.0
    requires_approval: Annotated[
        bool, Field(description="The job waits until another API key than the submitter's approves it.")
    ] = False

    max_forget_probability: _Share = 0.20
    max_forget_extraction_strength: _Share = 0.10
    max_forget_rouge_l_recall: _Share = 0.45
    max_forget_nll_excess: Annotated[
        _Nats, Field(description="NLL of the forget set beyond the reference's, nats per token: over-forgetting.")
    ] = None
    min_retain_probability_ratio: _Share = 0.90
    min_retain_rouge_l_recall_ratio: _Share = 0.90
    min_neighbour_probability_ratio: Annotated[
        _Limit, Field(description="On the kept records that are most like the forgotten ones.")
    ] = None
    max_general_nll_increase: Annotated[
        _Nats, Field(description="On plain sentences that have nothing to do with either set, nats per token.")
    ] = None
    max_rephrased_probability: Annotated[_Limit, Field(description="Worst form of the question.")] = None
    max_rephrased_extraction_strength: Annotated[_Limit, Field(description="Worst form of the question.")] = None
    max_membership_auc_distance: Annotated[
        _Limit,
        Field(description="Between result and reference, either way, worst of four scores; needs a holdout set."),
    ] = None
    max_quantized_probability: Annotated[_Limit, Field(description="Worst way of rounding.")] = None
    max_quantized_extraction_strength: Annotated[_Limit, Field(description="Worst way of rounding.")] = None
    max_history_probability: Annotated[_Limit, Field(description="Worst earlier forget set still held.")] = None
    max_history_extraction_strength: Annotated[_Limit, Field(description="Worst earlier forget set still held.")] = (
        None
    )
    max_resurfaced_probability: Annotated[_Limit, Field(description="After training on kept records alone.")] = None
    max_resurfaced_extraction_strength: Annotated[
        _Limit, Field(description="After training on kept records alone.")
    ] = None
    max_sampled_leak: Annotated[
        _Limit, Field(description="Share of records with a leak among 16 sampled answers.")
    ] = None
    max_relearned_excess: Annotated[
        _Limit,
        Field(description="Probability that relearning one half brings back of the other, beyond the reference's."),
    ] = None

    training_max_forget_probability: _Share = 0.10
    training_max_forget_extraction_strength: _Share = 0.04
    training_min_retain_probability_ratio: _Share = 0.98

    @field_validator("probes")
    @classmethod
    def _each_once(cls, probes: tuple[ProbeName, ...]) -> tuple[ProbeName, ...]:
        return tuple(dict.fromkeys(probes))

    def limits(self, probe: ProbeName) -> list[tuple[str, float | None]]:
        """What a probe is held against: threshold and limit."""
        return [(name, getattr(self, name)) for name, of in LIMITS.items() if of == probe]

    @property
    def targets(self) -> Targets:
        """Where training may stop. Never looser than the gate, however far that was tightened."""
        return Targets(
            max_forget_probability=min(self.training_max_forget_probability, self.max_forget_probability),
            max_forget_extraction_strength=min(
                self.training_max_forget_extraction_strength, self.max_forget_extraction_strength
            ),
            min_retain_probability_ratio=max(
                self.training_min_retain_probability_ratio, self.min_retain_probability_ratio
            ),
        )


FAST_POLICY = Policy(
    name="fast",
    version=1,
    description="Seconds. Recall of the forget set, what was kept, and the files. For trials, not for evidence.",
    probes=("recall", "utility", "integrity"),
    max_forget_nll_excess=1.0,
)
# Version 1 and 2 looked at recall and utility alone; version 2 added the thresholds of training. Version 4 judges
# what innocent further training brings back.
DEFAULT_POLICY = Policy(
    name="default",
    version=4,
    description="As long as the unlearning. Also rephrased questions, membership, rounding, earlier requests, and "
    "what training on kept records brings back.",
    probes=("recall", "utility", "rephrasing", "membership", "quantization", "integrity", "history", "resurfacing"),
    max_forget_nll_excess=1.0,
    min_neighbour_probability_ratio=0.85,
    max_general_nll_increase=0.5,
    max_rephrased_probability=0.25,
    max_rephrased_extraction_strength=0.20,
    max_membership_auc_distance=0.20,
    max_quantized_probability=0.25,
    max_quantized_extraction_strength=0.15,
    max_history_probability=0.25,
    max_history_extraction_strength=0.15,
    max_resurfaced_probability=0.15,
    max_resurfaced_extraction_strength=0.10,
)
AUDIT_POLICY = DEFAULT_POLICY.model_copy(
    update={
        "name": "audit",
        "version": 2,
        "description": "Everything, attacks included: innocent and hostile further training, and sampled answers.",
        "probes": PROBES,
        "max_membership_auc_distance": 0.15,
        "max_sampled_leak": 0.05,
        "max_relearned_excess": 0.10,
    }
)
POLICIES: dict[str, Policy] = {policy.name: policy for policy in (DEFAULT_POLICY, FAST_POLICY, AUDIT_POLICY)}
