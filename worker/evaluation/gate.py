"""The gate: an evaluation against a policy. It passes on evidence only; a missing value or NaN fails."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from app.methods import Policy
from worker.evaluation.evaluate import SetScores

FORGET = "forget"
RETAIN = "retain"


@dataclass(frozen=True)
class Check:
    """One threshold.

    Attributes:
        name: field of the metric, such as "forget_probability".
        description: the metric in words.
        value: what was measured; None where it could not be.
        limit: the policy's threshold.
        comparison: "<=" or ">=": how the value must stand to the limit.
        margin: distance to the limit, positive inside; None where there is no value.
        records: sample size behind the value.
        passed: the outcome.
    """

    name: str
    description: str
    value: float | None
    limit: float
    comparison: Literal["<=", ">="]
    margin: float | None
    records: int
    passed: bool


@dataclass(frozen=True)
class Gate:
    """The verdict and the checks that led to it. One failed check fails it."""

    verdict: Literal["passed", "failed"]
    checks: tuple[Check, ...]


def judge(policy: Policy, source: Mapping[str, SetScores], result: Mapping[str, SetScores]) -> Gate:
    """Compare the result with the policy.

    Args:
        policy: thresholds; limits themselves still pass.
        source: scores of the adapter before unlearning, by set: "retain" is read.
        result: scores after it, on the same records: "forget" and "retain" are read.
    """
    forget = result.get(FORGET)
    before, after = source.get(RETAIN), result.get(RETAIN)
    checks = (
        _at_most(forget, "probability", policy.max_forget_probability, "answer probability"),
        _at_most(forget, "extraction_strength", policy.max_forget_extraction_strength, "extraction strength"),
        _at_most(forget, "rouge_l_recall", policy.max_forget_rouge_l_recall, "ROUGE-L recall"),
        _ratio(before, after, "probability", policy.min_retain_probability_ratio, "answer probability"),
        _ratio(before, after, "rouge_l_recall", policy.min_retain_rouge_l_recall_ratio, "ROUGE-L recall"),
    )
    return Gate("passed" if all(check.passed for check in checks) else "failed", checks)


def _at_most(scores: SetScores | None, metric: str, limit: float, words: str) -> Check:
    """An absolute limit on the forget set."""
    value, records = _read(scores, metric)
    name, description = f"forget_{metric}", f"mean {words} on the forget set after unlearning"
    return _check(name, description, value, limit, "<=", records)


def _ratio(before: SetScores | None, after: SetScores | None, metric: str, limit: float, words: str) -> Check:
    """A relative limit on the retain set. A source that scores 0 cannot show that it was kept: ratio 0."""
    (old, old_records), (new, new_records) = _read(before, metric), _read(after, metric)
    value = None
    if old is not None and new is not None:
        value = new / old if old > 0 else 0.0
    description = f"mean {words} on the retain set, after unlearning divided by before"
    return _check(f"retain_{metric}_ratio", description, value, limit, ">=", min(old_records, new_records))


def _read(scores: SetScores | None, metric: str) -> tuple[float | None, int]:
    """A metric and its sample size; None where nothing, or nothing finite, was measured."""
    if scores is None or scores.records == 0:
        return None, 0
    value = float(getattr(scores, metric))
    return (value if math.isfinite(value) else None), scores.records


def _check(
    name: str,
    description: str,
    value: float | None,
    limit: float,
    comparison: Literal["<=", ">="],
    records: int,
) -> Check:
    """Margin and outcome of one threshold."""
    margin = None if value is None else (limit - value if comparison == "<=" else value - limit)
    passed = margin is not None and margin >= 0
    return Check(name, description, value, limit, comparison, margin, records, passed)
