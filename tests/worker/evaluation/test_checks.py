from __future__ import annotations

import math

import pytest

from worker.evaluation.checks import Check, Gate, Value, at_least, at_most, worst

NAN = float("nan")


def most(value: float | None, limit: float = 0.2, reference: float | None = None, records: int = 9) -> Check:
    return at_most("recall", "forget_probability", "words", Value(value, records), limit, reference)


def least(value: float | None, limit: float = 0.9, records: int = 9) -> Check:
    return at_least("utility", "retain_probability_ratio", "words", Value(value, records), limit)


@pytest.mark.parametrize(
    ("check", "passed", "margin"),
    [
        (most(0.15), True, 0.05),
        (most(0.2), True, 0.0),
        (most(0.21), False, -0.01),
        (least(0.95), True, 0.05),
        (least(0.9), True, 0.0),
        (least(0.89), False, -0.01),
    ],
)
def test_margin_is_the_distance_inside_the_limit(check: Check, margin: float, *, passed: bool) -> None:
    assert check.passed is passed
    assert check.margin == pytest.approx(margin)


@pytest.mark.parametrize("value", [None, NAN, math.inf, -math.inf])
def test_value_that_is_no_number_fails(value: float | None) -> None:
    for check in (most(value), least(value)):
        assert (check.passed, check.value, check.margin) == (False, None, None)


def test_value_without_records_fails() -> None:
    assert not most(0.0, records=0).passed
    assert not least(1.0, records=0).passed


def test_what_the_reference_shows_is_allowed() -> None:
    assert most(0.3, reference=0.35).passed
    assert most(0.3, reference=0.35).limit == 0.35
    assert not most(0.3, reference=0.25).passed


@pytest.mark.parametrize("reference", [None, 0.0, 0.1, NAN, math.inf])
def test_reference_never_makes_a_limit_stricter_or_void(reference: float | None) -> None:
    assert most(0.15, reference=reference).limit == 0.2


def test_interval_comes_along() -> None:
    check = at_most("membership", "x", "words", Value(0.1, 9, low=0.0, high=0.3), 0.2)
    assert (check.low, check.high) == (0.0, 0.3)


def test_one_failed_check_fails_the_gate_and_so_does_none() -> None:
    assert Gate.of([most(0.1), least(1.0)]).verdict == "passed"
    assert Gate.of([most(0.1), least(0.5), most(0.1)]).verdict == "failed"
    assert Gate.of([]).verdict == "failed"


def test_worst_is_the_smallest_margin_and_no_value_is_worse_than_any() -> None:
    checks = [most(0.1), most(0.19), most(0.05, limit=0.1)]
    assert worst(checks) is checks[1]
    missing = most(None)
    assert worst([*checks, most(0.9), missing]) is missing
