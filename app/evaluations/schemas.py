"""What an evaluation looks like from outside: means and sample sizes, never answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.methods import BlurMethod, Policy

_Share = Annotated[float, Field(ge=0, le=1)]


class SetScores(BaseModel):
    """Means over the records of one set (docs/evaluation.md)."""

    model_config = ConfigDict(extra="forbid")

    records: Annotated[int, Field(description="Records that the means are over.")]
    skipped: Annotated[int, Field(description="Records without an answer token, left out.")]
    probability: Annotated[_Share, Field(description="Length-normalised probability of the answer.")]
    nll: Annotated[float, Field(ge=0, description="Negative log-likelihood, nats per answer token.")]
    extraction_strength: _Share
    exact_memorisation: _Share
    rouge_l_recall: Annotated[_Share, Field(description="Of the greedy answer.")]


class ModelScores(BaseModel):
    """Scores of one model, by set."""

    model_config = ConfigDict(extra="forbid")

    forget: SetScores
    retain: SetScores
    holdout: SetScores | None = None


class Models(BaseModel):
    """Every model that was measured on the same records."""

    model_config = ConfigDict(extra="forbid")

    base: Annotated[ModelScores, Field(description="The base model alone.")]
    source: Annotated[ModelScores, Field(description="The adapter before unlearning.")]
    result: Annotated[ModelScores, Field(description="The packaged adapter after unlearning, loaded afresh.")]


class Check(BaseModel):
    """One threshold of the gate."""

    model_config = ConfigDict(extra="forbid")

    name: str
    description: str
    value: float | None
    limit: float
    comparison: Literal["<=", ">="]
    margin: Annotated[float | None, Field(description="Distance to the limit, positive inside.")]
    records: Annotated[int, Field(description="Sample size behind the value.")]
    passed: bool


class Gate(BaseModel):
    """The verdict and the checks that led to it."""

    model_config = ConfigDict(extra="forbid")

    verdict: Literal["passed", "failed"]
    checks: list[Check]


class Environment(BaseModel):
    """Where it was computed."""

    model_config = ConfigDict(extra="forbid")

    device: str
    threads: int
    python: str
    torch: str
    transformers: str
    peft: str
    lethe: str


class Durations(BaseModel):
    """Seconds that each phase took."""

    model_config = ConfigDict(extra="forbid")

    preparing: float
    unlearning: float
    evaluating: float


class EvaluationDocument(BaseModel):
    """What a worker stores."""

    model_config = ConfigDict(extra="forbid")

    source_version: int
    result_weights_sha256: str
    models: Models
    gate: Gate
    policy: Policy
    method: BlurMethod
    seed: int
    sampled_to: Annotated[int, Field(description="Most records of a retain or holdout set that were evaluated.")]
    environment: Environment
    durations: Durations
    warnings: Annotated[list[str], Field(description="What a reader of the verdict should know.")]
    not_tested: Annotated[list[str], Field(description="What this evaluation says nothing about.")]


class EvaluationRead(EvaluationDocument):
    """An evaluation as it is shown."""

    object: Literal["evaluation"] = "evaluation"
    job: str
    run_id: str
    attempt: int
    created_at: datetime
