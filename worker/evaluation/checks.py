"""Thresholds and verdicts. A check passes on evidence only; a missing value or NaN fails."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from app.methods import ProbeName


@dataclass(frozen=True)
class Check:
    """One threshold.

    Attributes:
        probe: who measured.
        name: what was measured, such as "forget_probability".
        description: the same in words.
        value: what was measured; None where it could not be.
        limit: the policy's threshold, or the reference's own value where that is looser.
        comparison: "<=" or ">=": how the value must stand to the limit.
        margin: distance to the limit, positive inside; None where there is no value.
        records: sample size behind the value.
        passed: the outcome.
        low, high: 95 % interval of the value, where the probe gives one.
    """

    probe: ProbeName
    name: str
    description: str
    value: float | None
    limit: float
    comparison: Literal["<=", ">="]
    margin: float | None
    records: int
    passed: bool
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Gate:
    """The verdict and the checks that led to it. One failed check fails it; so does having none."""

    verdict: Literal["passed", "failed"]
    checks: tuple[Check, ...]

    @classmethod
    def of(cls, checks: Sequence[Check]) -> Gate:
        """The verdict on these checks."""
        passed = bool(checks) and all(check.passed for check in checks)
        return cls("passed" if passed else "failed", tuple(checks))


@dataclass(frozen=True)
class Value:
    """What a check looks at. A value that is None or not finite fails it.

    Attributes:
        value: the number.
        records: sample size.
        low, high: 95 % interval, where there is one.
    """

    value: float | None
    records: int
    low: float | None = None
    high: float | None = None


def at_most(
    probe: ProbeName, name: str, description: str, found: Value, limit: float, reference: float | None = None
) -> Check:
    """An upper limit.

    Args:
        probe, name, description: as in `Check`.
        found: what was measured.
        limit: the policy's.
        reference: what a model shows that never saw the records; looser than the limit, it takes its place, because
            nothing has to be forgotten beyond it.
    """
    allowed = limit if reference is None or not math.isfinite(reference) else max(limit, reference)
    return _check(probe, name, description, found, allowed, "<=")


def at_least(probe: ProbeName, name: str, description: str, found: Value, limit: float) -> Check:
    """A lower limit."""
    return _check(probe, name, description, found, limit, ">=")


def _check(
    probe: ProbeName, name: str, description: str, found: Value, limit: float, comparison: Literal["<=", ">="]
) -> Check:
    value = found.value if found.value is not None and math.isfinite(found.value) and found.records > 0 else None
    margin = None if value is None else (limit - value if comparison == "<=" else value - limit)
    passed = margin is not None and margin >= 0
    return Check(
        probe, name, description, value, limit, comparison, margin, found.records, passed, found.low, found.high
    )


def worst(checks: Sequence[Check]) -> Check:
    """Of checks of one kind, such as one per form of a question, the one with the smallest margin."""
    return min(checks, key=lambda check: -math.inf if check.margin is None else check.margin)
