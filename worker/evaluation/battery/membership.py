"""Membership: whether the forgotten records still stand out among look-alikes that nobody trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

from app.methods import LEAST_FOR_MEMBERSHIP, ProbeName
from worker.evaluation.battery.base import Cost, Found, Measure, ModelName, NotApplicable, Subject
from worker.evaluation.checks import Check, Value, at_most, worst
from worker.evaluation.membership import (
    SCORES,
    Bootstrap,
    Floats,
    Interval,
    ScoreName,
    direction,
    distance,
    membership_scores,
    privacy_leakage,
)

FORGET, HOLDOUT = "forget", "holdout"
WORDS: Mapping[ScoreName, str] = {
    "loss": "loss",
    "zlib": "loss over compressed size",
    "min_k": "min-k",
    "min_k_plus_plus": "min-k++",
}


class Membership:
    """Four scores of forgotten and of held-out records under every model. Standing out either way is a trace."""

    name: ClassVar[ProbeName] = "membership"
    cost: ClassVar[Cost] = "seconds"
    title: ClassVar[str] = "Can forgotten records be told from records that were never trained on?"

    def ahead(self, subject: Subject, model: ModelName) -> None:
        """Measure a model."""
        _require_holdout(subject)
        _scores(subject, model)

    def run(self, subject: Subject) -> Found:
        """Look."""
        _require_holdout(subject)
        seen = {model: _scores(subject, model) for model in subject.models}
        result = seen["result"]
        if not result.forget or not result.holdout:
            raise NotApplicable("the forget or the holdout set has no record with an answer")
        bootstrap = Bootstrap(result.forget, result.holdout, subject.seed)
        aucs = {model: {name: bootstrap.auc(*scores.of(name)) for name in SCORES} for model, scores in seen.items()}
        differences: dict[ScoreName, Interval] = {}
        if subject.reference is not None:
            reference = seen[subject.reference]
            differences = {name: bootstrap.difference(result.of(name), reference.of(name)) for name in SCORES}
        measures = [*_measures(aucs, result.forget), *_result_measures(subject, aucs, differences, result.forget)]
        records = min(result.forget, result.holdout)
        return Found(measures, list(_checks(subject, differences, records)), _note(subject, aucs, result))


def _require_holdout(subject: Subject) -> None:
    if not subject.records.get(HOLDOUT):
        raise NotApplicable(
            "no holdout set was given; one of records that look like the forgotten ones and were never trained on "
            "makes this test possible"
        )


class _Scores:
    """Both sets under one model."""

    def __init__(self, subject: Subject, model: ModelName) -> None:
        examples = [subject.examples(name) for name in (FORGET, HOLDOUT)]
        with subject.model(model) as loaded:
            self._members, self._others = (
                membership_scores(loaded, subject.tokenizer, part, subject.batch_size) for part in examples
            )
        self.forget, self.holdout = len(self._members["loss"]), len(self._others["loss"])

    def of(self, name: ScoreName) -> tuple[Floats, Floats]:
        """One score of both."""
        return self._members[name], self._others[name]


def _scores(subject: Subject, model: ModelName) -> _Scores:
    return subject.once(("membership", model), lambda: _Scores(subject, model))


def _measures(aucs: Mapping[ModelName, Mapping[ScoreName, Interval]], records: int) -> Iterator[Measure]:
    for model, scores in aucs.items():
        for name, found in scores.items():
            yield Measure("membership_auc", model, found.value, records, found.low, found.high, name)


def _result_measures(
    subject: Subject,
    aucs: Mapping[ModelName, Mapping[ScoreName, Interval]],
    differences: Mapping[ScoreName, Interval],
    records: int,
) -> Iterator[Measure]:
    """What sets the result apart from the reference."""
    for name, found in differences.items():
        yield Measure("membership_auc_difference", "result", found.value, records, found.low, found.high, name)
    if subject.reference == "control":
        leakage = privacy_leakage(aucs["result"]["min_k"].value, aucs["control"]["min_k"].value)
        if leakage is not None:
            yield Measure("privacy_leakage_percent", "result", leakage, records, detail="min_k")


def _checks(subject: Subject, differences: Mapping[ScoreName, Interval], records: int) -> Iterator[Check]:
    limit = subject.policy.max_membership_auc_distance
    if limit is None or records < LEAST_FOR_MEMBERSHIP or not differences:
        return
    of_scores = []
    for name, difference in differences.items():
        found = distance(difference)
        words = (
            f"distance between the membership AUCs of result and {subject.reference}, by the worst score, "
            f"{WORDS[name]}: forgotten records are {_direction(difference)}"
        )
        value = Value(found.value, records, found.low, found.high)
        of_scores.append(at_most("membership", "membership_auc_distance", words, value, limit))
    yield worst(of_scores)


def _direction(difference: Interval) -> str:
    words = direction(difference)
    return "no better or worse known" if words == "no difference" else words


def _note(subject: Subject, aucs: Mapping[ModelName, Mapping[ScoreName, Interval]], result: _Scores) -> str:
    """What the numbers of the result say on their own."""
    standing = []
    for name, found in aucs["result"].items():
        from_chance = Interval(found.value - 0.5, found.low - 0.5, found.high - 0.5)
        standing.append(f"{WORDS[name]}: {direction(from_chance)}")
    few = ""
    if min(result.forget, result.holdout) < LEAST_FOR_MEMBERSHIP:
        few = f" Fewer than {LEAST_FOR_MEMBERSHIP} of either are too few to be judged by."
    return (
        f"{result.forget} forgotten against {result.holdout} held-out records.{few} An AUC of 0.5 tells nothing "
        "apart, 1 says that every forgotten record is better known than every look-alike, 0 the opposite. "
        f"Against the look-alikes, the result's forgotten records are, by {'; '.join(standing)}. "
        f"{_compared(subject)} Intervals treat records as independent. Average-case scores cannot rule out that "
        "single records stand out."
    )


def _compared(subject: Subject) -> str:
    if subject.reference is None:
        return "Nothing is judged: the two sets may differ from the start, and no model is there that never saw them."
    return f"The check compares with the {subject.reference} model, because the two sets may differ from the start."
