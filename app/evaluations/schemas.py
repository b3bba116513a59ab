"""What an evaluation looks like from outside: means and sample sizes, never answers."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.methods import Policy, ProbeName, StoredMethod

_Share = Annotated[float, Field(ge=0, le=1)]
_Low = Annotated[float | None, Field(description="Lower end of the 95 % interval, where there is one.")]
_High = Annotated[float | None, Field(description="Upper end of the 95 % interval, where there is one.")]
ModelName = Literal["base", "source", "control", "result"]


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
    control: Annotated[
        ModelScores | None, Field(description="An adapter that never saw the forget set, where the job names one.")
    ] = None


class RecordScore(BaseModel):
    """Scores of one record under one model."""

    model_config = ConfigDict(extra="forbid")

    probability: _Share
    nll: Annotated[float, Field(ge=0)]
    extraction_strength: _Share


class RecordRow(BaseModel):
    """One record under every model. Never its content."""

    model_config = ConfigDict(extra="forbid")

    record: Annotated[int, Field(ge=1, description="Line of the record in the uploaded set, from 1.")]
    base: RecordScore
    source: RecordScore
    result: RecordScore
    control: RecordScore | None = None


class Records(BaseModel):
    """Single records, by set. Kept and held-out records may be a sample."""

    model_config = ConfigDict(extra="forbid")

    forget: list[RecordRow]
    retain: list[RecordRow]
    holdout: list[RecordRow] | None = None


class Measure(BaseModel):
    """One number of a probe."""

    model_config = ConfigDict(extra="forbid")

    name: str
    model: ModelName
    value: float
    records: Annotated[int, Field(description="Sample size.")]
    low: _Low = None
    high: _High = None
    detail: Annotated[str, Field(description="Which variant, such as a form of the question.")] = ""


class ProbeReport(BaseModel):
    """What one probe of the battery found."""

    model_config = ConfigDict(extra="forbid")

    name: ProbeName
    title: Annotated[str, Field(description="What it asks.")]
    cost: Literal["seconds", "minutes", "long"]
    measured: Annotated[bool, Field(description="False where it did not apply; the note says why.")]
    note: str
    seconds: float
    measures: list[Measure]


class Check(BaseModel):
    """One threshold of the gate."""

    model_config = ConfigDict(extra="forbid")

    probe: Annotated[ProbeName, Field(description="Who measured.")] = "recall"
    name: str
    description: str
    value: float | None
    limit: float
    comparison: Literal["<=", ">="]
    margin: Annotated[float | None, Field(description="Distance to the limit, positive inside.")]
    records: Annotated[int, Field(description="Sample size behind the value.")]
    passed: bool
    low: _Low = None
    high: _High = None


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
    four_bit: Annotated[bool, Field(description="Whether the base model was held in four bits.")] = False
    spread: Annotated[bool, Field(description="Whether the base model lay on several devices.")] = False


class Probe(BaseModel):
    """A quick look during training, with teacher forcing alone. Means over sequences (docs/evaluation.md)."""

    model_config = ConfigDict(extra="forbid")

    step: Annotated[int, Field(description="Optimizer steps taken before; 0 is the source adapter.")]
    forget_probability: _Share
    forget_extraction_strength: _Share
    forget_sequences: Annotated[int, Field(description="Sequences looked at.")]
    retain_probability: _Share
    retain_ratio: Annotated[float, Field(ge=0, description="Retain probability over that of the source adapter.")]
    retain_sequences: Annotated[int, Field(description="Sequences looked at.")]
    resurfaced_probability: Annotated[
        float | None,
        Field(ge=0, le=1, description="Forget probability after the last rehearsal; null where there was none."),
    ] = None


class Training(BaseModel):
    """How training went, and why it ended."""

    model_config = ConfigDict(extra="forbid")

    steps: Annotated[int, Field(description="Optimizer steps taken.")]
    kept_step: Annotated[int, Field(description="The step whose weights were kept and evaluated.")]
    most_steps: Annotated[int, Field(description="Steps after which training would have ended anyway.")]
    reason: Literal["targets_met", "no_progress", "steps_taken"]
    explanation: str
    micro_batch_size: Annotated[int, Field(description="What it came down to.")]
    passes: Annotated[int, Field(description="Forward and backward passes per micro-batch.")]
    sequences: Annotated[
        int | None,
        Field(description="Passed over, forward and backward, over all steps. Null before version 0.4."),
    ] = None
    resumed: Annotated[bool, Field(description="Whether it went on from the checkpoint of an earlier attempt.")]
    probes: list[Probe]


class Try(BaseModel):
    """One training of a run and how the gate took it. A policy may allow several, each stronger than the last."""

    model_config = ConfigDict(extra="forbid")

    number: Annotated[int, Field(ge=1)]
    change: Annotated[str, Field(description="What was made stronger; empty for the first.")]
    method: StoredMethod
    steps: int
    verdict: Literal["passed", "failed"]
    missed: Annotated[list[str], Field(description="Names of the checks that failed.")]


class Retraining(BaseModel):
    """A result that was trained anew from the base model, by the recorded recipe, without the forget set.

    Exact means that much and no more: it is no claim that two trainings give the same bytes, nor about what else the
    training set says of the records in other words.
    """

    model_config = ConfigDict(extra="forbid")

    exact: Annotated[bool, Field(description="Whether every forget record was in the training set, and taken out.")]
    forget_records: Annotated[int, Field(description="Different ones.")]
    found: Annotated[int, Field(description="Those of them that the training set held.")]
    removed: Annotated[int, Field(description="Records that were taken out, repeated ones included.")]
    training_records: Annotated[int, Field(description="Records that were trained on.")]


class Durations(BaseModel):
    """Seconds that each phase took."""

    model_config = ConfigDict(extra="forbid")

    preparing: float
    unlearning: float
    evaluating: float


class EvaluationDocument(BaseModel):
    """What a worker stores."""

    model_config = ConfigDict(extra="forbid")

    source_version: Annotated[int | None, Field(description="Null where the run began a fresh LoRA.")]
    result_weights_sha256: str
    models: Models
    gate: Gate
    reference: Annotated[
        ModelName | None,
        Field(
            description="Who stood for a model that never saw the forget set: base or control. Null where the base "
            "model itself knows it."
        ),
    ] = "base"
    policy: Policy
    method: StoredMethod
    seed: int
    sampled_to: Annotated[int, Field(description="Most records of a retain or holdout set that were evaluated.")]
    environment: Environment
    durations: Durations
    training: Annotated[Training | None, Field(description="Null before version 0.2.")] = None
    probes: Annotated[list[ProbeReport], Field(description="Empty before version 0.3.")] = []
    records: Annotated[Records | None, Field(description="Null before version 0.3.")] = None
    retraining: Annotated[Retraining | None, Field(description="Null for a result that was unlearned from.")] = None
    tries: Annotated[list[Try], Field(description="Every training of the run, the last one's result is judged.")] = []
    warnings: Annotated[list[str], Field(description="What a reader of the verdict should know.")]
    not_tested: Annotated[list[str], Field(description="What this evaluation says nothing about.")]


class EvaluationRead(EvaluationDocument):
    """An evaluation as it is shown."""

    object: Literal["evaluation"] = "evaluation"
    job: str
    run_id: str
    attempt: int
    created_at: datetime
