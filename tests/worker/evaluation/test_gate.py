from __future__ import annotations

from typing import Any

import pytest

from app.methods import Policy
from worker.evaluation.evaluate import SetScores
from worker.evaluation.gate import Check, judge

NAN = float("nan")
POLICY = Policy(
    max_forget_probability=0.2,
    max_forget_extraction_strength=0.1,
    max_forget_rouge_l_recall=0.45,
    min_retain_probability_ratio=0.9,
    min_retain_rouge_l_recall_ratio=0.8,
)


def scores(probability: float = 0.0, strength: float = 0.0, rouge: float = 0.0, records: int = 9) -> SetScores:
    return SetScores(
        records=records,
        skipped=0,
        probability=probability,
        nll=1.0,
        extraction_strength=strength,
        exact_memorisation=0.0,
        rouge_l_recall=rouge,
        per_record=(),
    )


SOURCE = {"forget": scores(0.9, 0.9, 0.9), "retain": scores(0.8, 0.9, 1.0, records=50)}
GOOD = {"forget": scores(0.1, 0.05, 0.3), "retain": scores(0.76, 0.9, 0.9, records=40)}


def checks(source: dict[str, SetScores], result: dict[str, SetScores], **policy: Any) -> dict[str, Check]:
    return {check.name: check for check in judge(POLICY.model_copy(update=policy), source, result).checks}


def test_result_inside_every_limit_passes_with_margins_and_sample_sizes() -> None:
    gate = judge(POLICY, SOURCE, GOOD)
    assert gate.verdict == "passed"
    assert [(check.name, check.value, check.limit, check.comparison, check.records) for check in gate.checks] == [
        ("forget_probability", 0.1, 0.2, "<=", 9),
        ("forget_extraction_strength", 0.05, 0.1, "<=", 9),
        ("forget_rouge_l_recall", 0.3, 0.45, "<=", 9),
        ("retain_probability_ratio", pytest.approx(0.95), 0.9, ">=", 40),
        ("retain_rouge_l_recall_ratio", 0.9, 0.8, ">=", 40),
    ]
    assert [check.margin for check in gate.checks] == pytest.approx([0.1, 0.05, 0.15, 0.05, 0.1])


@pytest.mark.parametrize(
    ("changed", "failing"),
    [
        ({"forget": scores(0.21, 0.05, 0.3)}, "forget_probability"),
        ({"forget": scores(0.1, 0.11, 0.3)}, "forget_extraction_strength"),
        ({"forget": scores(0.1, 0.05, 0.46)}, "forget_rouge_l_recall"),
        ({"retain": scores(0.71, 0.9, 0.9)}, "retain_probability_ratio"),
        ({"retain": scores(0.76, 0.9, 0.79)}, "retain_rouge_l_recall_ratio"),
    ],
)
def test_one_limit_missed_fails_the_gate(changed: dict[str, SetScores], failing: str) -> None:
    gate = judge(POLICY, SOURCE, GOOD | changed)
    assert gate.verdict == "failed"
    failed = [check for check in gate.checks if not check.passed]
    assert [check.name for check in failed] == [failing]
    assert failed[0].margin is not None
    assert failed[0].margin < 0


def test_value_on_the_limit_passes() -> None:
    result = {"forget": scores(0.2, 0.1, 0.45), "retain": scores(0.4, 0.0, 0.5)}
    source = {"retain": scores(0.5, 0.0, 0.5)}
    policy = POLICY.model_copy(update={"min_retain_probability_ratio": 0.8})
    assert judge(policy, source, result).verdict == "passed"


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["forget", "retain", "source"])
def test_value_that_is_no_number_fails(value: float, where: str) -> None:
    bad = scores(value, 0.0, 0.0)
    source = SOURCE | {"retain": bad} if where == "source" else SOURCE
    result = GOOD | {where: bad} if where != "source" else GOOD
    gate = judge(POLICY, source, result)
    assert gate.verdict == "failed"
    missing = [check for check in gate.checks if check.value is None]
    assert len(missing) == 1
    assert missing[0].margin is None
    assert not missing[0].passed


@pytest.mark.parametrize("empty", ["forget", "retain"])
@pytest.mark.parametrize("missing", [True, False], ids=["missing", "without records"])
def test_set_that_was_not_measured_fails(empty: str, missing: bool) -> None:
    result = {name: value for name, value in GOOD.items() if name != empty}
    if not missing:
        result[empty] = scores(records=0)  # its means are 0, which must not pass as "forgotten"
    outcome = checks(SOURCE, result)
    affected = [check for check in outcome.values() if check.name.startswith(empty)]
    assert len(affected) in (2, 3)
    assert not any(check.passed or check.value is not None for check in affected)


def test_missing_source_fails_the_ratios() -> None:
    outcome = checks({}, GOOD)
    assert [name for name, check in outcome.items() if not check.passed] == [
        "retain_probability_ratio",
        "retain_rouge_l_recall_ratio",
    ]


def test_source_that_scores_zero_cannot_show_that_anything_was_kept() -> None:
    source = SOURCE | {"retain": scores(0.8, 0.9, 0.0)}
    check = checks(source, GOOD)["retain_rouge_l_recall_ratio"]
    assert (check.value, check.passed) == (0.0, False)
    assert checks(source, GOOD, min_retain_rouge_l_recall_ratio=0.0)["retain_rouge_l_recall_ratio"].passed


def test_ratio_is_judged_on_the_smaller_sample() -> None:
    source = {"retain": scores(0.8, 0.9, 1.0, records=3)}
    assert checks(source, GOOD)["retain_probability_ratio"].records == 3
