"""What a result must reach."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.methods.fields import Strict

_Share = Annotated[float, Field(ge=0, le=1)]


class Targets(Strict):
    """Where training may stop, by the quick probe of the stop rule (means over sampled sequences, in [0, 1])."""

    max_forget_probability: _Share
    max_forget_extraction_strength: _Share
    min_retain_probability_ratio: _Share


class Policy(Strict):
    """Acceptance thresholds of the gate. Metrics are means over records, in [0, 1] (docs/evaluation.md).

    Absolute limits apply to the forget set after unlearning. Ratios compare the result with the source adapter.
    The thresholds named ``training_`` do not gate: training stops where they hold, so they leave the gate a margin.
    """

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")] = "default"
    version: Annotated[int, Field(ge=1)] = 1
    max_forget_probability: _Share = 0.20
    max_forget_extraction_strength: _Share = 0.10
    max_forget_rouge_l_recall: _Share = 0.45
    min_retain_probability_ratio: _Share = 0.90
    min_retain_rouge_l_recall_ratio: _Share = 0.90
    training_max_forget_probability: _Share = 0.10
    training_max_forget_extraction_strength: _Share = 0.04
    training_min_retain_probability_ratio: _Share = 0.98

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


# Version 2 added the thresholds of training; version 1 gated alike.
DEFAULT_POLICY = Policy(version=2)
POLICIES: dict[str, Policy] = {DEFAULT_POLICY.name: DEFAULT_POLICY}
