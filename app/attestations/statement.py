"""What an attestation states: an in-toto Statement v1 whose predicate tells what was done and measured.

Nothing is stated that was not measured: numbers come from the stored evaluation, which the statement names by digest,
and what was not tested is listed beside them. docs/attestation.md describes every field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import rfc8785
from pydantic import BaseModel, ConfigDict, Field

from app.audit.chain import document_digest

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://lethe.dev/attestations/unlearning/v1"

ATTESTATION_FILE = "attestation.dsse.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# The other files of an archive: what is attested.
SUBJECTS = ("README.md", "adapter_config.json", WEIGHTS_FILE)

_TRAINING = ("steps", "kept_step", "most_steps", "sequences", "reason", "micro_batch_size", "passes", "resumed")
_TRY = ("number", "change", "steps", "verdict", "missed")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    """Part of a statement. Fields of a later service are left unread, as in-toto asks of readers."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class _Open(BaseModel):
    """Part of a statement that is carried as it is: its further fields belong to others."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)


class Digest(_Part):
    """By algorithm."""

    sha256: Sha256


class Subject(_Part):
    """One file of the archive."""

    name: str
    digest: Digest


class AdapterFacts(_Part):
    """Which adapter, and which of its versions this is."""

    name: str
    version: int


class BaseModelFacts(_Part):
    """The base model. `sha256` is over the sums of its files, as ``sha256sum`` prints them."""

    name: str
    revision: str | None
    sha256: Sha256


class VersionFacts(_Part):
    """A stored adapter version: the one that was unlearned from, or one that the caller named as a control."""

    version: int
    weights_sha256: Sha256
    archive_sha256: Sha256


class DatasetFacts(_Part):
    """A record set: no plain digest, by which somebody who guesses its records could confirm them."""

    id: str
    records: int
    salted_digest: Annotated[Sha256, Field(description="HMAC-SHA256 of the sha256 of the upload, with a secret key.")]


class Datasets(_Part):
    """The record sets of a job."""

    forget: DatasetFacts
    retain: DatasetFacts
    holdout: DatasetFacts | None = None


class RetrainingFacts(_Open):
    """A result that was trained anew without the forget set: what was found of that, and what is left."""

    exact: bool
    forget_records: int
    found: int
    removed: int
    training_records: int
    training_set: DatasetFacts


class PolicyFacts(_Open):
    """The policy, with all of its values."""

    name: str
    version: int


class CheckFacts(_Open):
    """A measured value against its threshold."""

    name: str
    value: float | None
    limit: float
    comparison: Literal["<=", ">="]
    records: int
    passed: bool


class EvaluationFacts(_Part):
    """The evaluation behind the checks. `sha256` is over its canonical JSON (RFC 8785)."""

    id: str
    sha256: Sha256
    weights_sha256: Annotated[Sha256, Field(description="The weights that were loaded and evaluated.")]
    sampled_to: Annotated[int, Field(description="Most records of a retain or holdout set that were evaluated.")]


class AuditHead(_Part):
    """The newest entry of the tenant's audit chain when this was signed."""

    sequence: int
    hash: Sha256


class Times(_Part):
    """When what happened."""

    started_at: datetime
    evaluated_at: datetime
    signed_at: datetime


class Predicate(_Part):
    """What was done and measured, by whom with what, and what that does not prove."""

    job: str
    run: str
    attempt: int
    times: Times
    adapter: AdapterFacts
    base_model: BaseModelFacts
    source: Annotated[VersionFacts | None, Field(description="Null where the run began a fresh LoRA on the base.")]
    fresh_lora: Annotated[dict[str, Any] | None, Field(description="The shape that it had.")] = None
    control: VersionFacts | None = None
    datasets: Datasets
    method: dict[str, Any]
    exact: Annotated[bool, Field(description="Trained anew without any of the forget set (docs/attestation.md).")] = (
        False
    )
    retraining: RetrainingFacts | None = None
    seed: int
    training: dict[str, Any]
    tries: list[dict[str, Any]]
    policy: PolicyFacts
    verdict: Literal["passed"]
    checks: Annotated[list[CheckFacts], Field(min_length=1)]
    scores: dict[str, Any]
    evaluation: EvaluationFacts
    environment: dict[str, Any]
    audit_head: AuditHead
    warnings: list[str]
    not_tested: list[str]
    limits: list[str]


class Statement(_Part):
    """An in-toto Statement v1 about a released adapter."""

    type: Annotated[str, Field(alias="_type")]
    subject: list[Subject]
    predicate_type: Annotated[str, Field(alias="predicateType")]
    predicate: Predicate

    def payload(self) -> bytes:
        """Its canonical JSON (RFC 8785), which is what gets signed."""
        return rfc8785.dumps(self.model_dump(mode="json", by_alias=True))


@dataclass(frozen=True)
class Facts:
    """What a statement is made of.

    Attributes:
        files: sha256 (hex) of every file of the archive but the attestation, by name.
        evaluation: the evaluation as it is stored.
        evaluation_id: its id.
        limits: what the result does not prove.
        training_set: what a result was trained on that was trained anew.
    """

    job: str
    run: str
    attempt: int
    times: Times
    files: Mapping[str, str]
    adapter: AdapterFacts
    base_model: BaseModelFacts
    source: VersionFacts | None
    control: VersionFacts | None
    datasets: Datasets
    evaluation_id: str
    evaluation: Mapping[str, Any]
    audit_head: AuditHead
    limits: tuple[str, ...]
    fresh_lora: Mapping[str, Any] | None = None
    training_set: DatasetFacts | None = None


def build_statement(facts: Facts) -> Statement:
    """The statement of a release.

    Raises:
        ValueError: the files are not those of an archive, the gate did not pass, or other weights were evaluated.
    """
    evaluation, gate = facts.evaluation, facts.evaluation["gate"]
    if set(facts.files) != set(SUBJECTS):
        raise ValueError(f"an attestation is about exactly {', '.join(SUBJECTS)}")
    if gate["verdict"] != "passed" or not all(check["passed"] for check in gate["checks"]):
        raise ValueError("only what passed the gate is attested")
    if evaluation["result_weights_sha256"] != facts.files[WEIGHTS_FILE]:
        raise ValueError("the weights are not those that were evaluated")
    subject = [{"name": name, "digest": {"sha256": facts.files[name]}} for name in SUBJECTS]
    return Statement.model_validate(
        {
            "_type": STATEMENT_TYPE,
            "subject": subject,
            "predicateType": PREDICATE_TYPE,
            "predicate": _predicate(facts),
        }
    )


def _predicate(facts: Facts) -> dict[str, Any]:
    evaluation = facts.evaluation
    named = ("job", "run", "attempt", "times", "adapter", "base_model", "source", "fresh_lora", "control", "datasets")
    copied = ("method", "seed", "policy", "environment", "warnings", "not_tested")
    return (
        {name: getattr(facts, name) for name in named}
        | {name: evaluation[name] for name in copied}
        | _retraining(facts)
        | {
            "training": _some(evaluation.get("training") or {}, _TRAINING),
            "tries": [_some(one, _TRY) for one in evaluation.get("tries", ())],
            "verdict": evaluation["gate"]["verdict"],
            "checks": evaluation["gate"]["checks"],
            # Means over sets; the scores of single records stay with the tenant.
            "scores": evaluation["models"],
            "audit_head": facts.audit_head,
            "limits": facts.limits,
            "evaluation": EvaluationFacts(
                id=facts.evaluation_id,
                sha256=document_digest(evaluation),
                weights_sha256=evaluation["result_weights_sha256"],
                sampled_to=evaluation["sampled_to"],
            ),
        }
    )


def _retraining(facts: Facts) -> dict[str, Any]:
    measured = facts.evaluation.get("retraining")
    if measured is None:
        return {"exact": False, "retraining": None}
    if facts.training_set is None or facts.training_set.records != measured["training_records"]:
        raise ValueError("the training set is not the one that was trained on")
    return {"exact": measured["exact"], "retraining": measured | {"training_set": facts.training_set}}


def _some(found: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: found[name] for name in names if name in found}
