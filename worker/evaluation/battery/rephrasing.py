"""Rephrasing: whether the records come back when they are asked for in another form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar

from app.methods import ProbeName
from worker.evaluation.battery.base import (
    Cost,
    Found,
    Measure,
    ModelName,
    NotApplicable,
    Subject,
    allowed,
    shown_models,
)
from worker.evaluation.checks import Check, Value, at_most, worst
from worker.evaluation.evaluate import fitting
from worker.evaluation.forms import rephrased
from worker.evaluation.membership import mean_interval
from worker.evaluation.metrics import TokenScores, token_scores
from worker.unlearning.encoding import Example

FORGET, RETAIN = "forget", "retain"
METRICS = ("probability", "extraction_strength")
Values = Mapping[str, Mapping[str, Value]]
"""By form, then by metric."""


class Rephrasing:
    """Every forgotten record in every form. The worst form decides, because an attacker chooses it."""

    name: ClassVar[ProbeName] = "rephrasing"
    cost: ClassVar[Cost] = "seconds"
    title: ClassVar[str] = "Does the model still know the records, asked in other words?"

    def ahead(self, subject: Subject, model: ModelName) -> None:
        """Measure a model."""
        asked = _asked(subject)
        if model in shown_models(subject):
            _ask(subject, model, asked)

    def run(self, subject: Subject) -> Found:
        """Look."""
        asked = _asked(subject)
        seen = {model: _ask(subject, model, asked) for model in shown_models(subject)}
        return Found(list(_measures(seen)), list(_checks(subject, seen)), _note(asked, len(subject.records[FORGET])))


def _asked(subject: Subject) -> Mapping[str, list[Example]]:
    """The records in every form."""

    def write() -> Mapping[str, list[Example]]:
        return rephrased(subject.records[FORGET], subject.records[RETAIN], subject.tokenizer, subject.encode)

    asked = subject.once(("rephrasing", "forms"), write)
    if not asked:
        raise NotApplicable("no record of the forget set has both a prompt and an answer")
    return asked


def _ask(subject: Subject, model: ModelName, asked: Mapping[str, list[Example]]) -> Values:
    """What a model shows of every form."""
    return subject.once(("rephrasing", model), lambda: _answers(subject, model, asked))


def _answers(subject: Subject, model: ModelName, asked: Mapping[str, list[Example]]) -> Values:
    """All forms in one list, so that batches are full."""
    together = [example for examples in asked.values() for example in examples]
    with subject.model(model) as loaded:
        scores = fitting(subject.batch_size, lambda size: token_scores(loaded, subject.tokenizer, together, size))
    values, start = {}, 0
    for form, examples in asked.items():
        part = [score for score in scores[start : start + len(examples)] if score.answer_tokens]
        values[form] = {metric: _value(metric, part, subject.seed) for metric in METRICS} if part else {}
        start += len(examples)
    return {form: by_metric for form, by_metric in values.items() if by_metric}


def _value(metric: str, scores: list[TokenScores], seed: int) -> Value:
    per_record = [_probability(score) if metric == "probability" else _strength(score) for score in scores]
    mean = mean_interval(per_record, seed)
    return Value(mean.value, len(scores), mean.low, mean.high)


def _probability(score: TokenScores) -> float:
    return math.exp(-score.nll_sum / score.labels)


def _strength(score: TokenScores) -> float:
    return score.matching_suffix / score.answer_tokens


def _measures(seen: Mapping[ModelName, Values]) -> Iterator[Measure]:
    for model, forms in seen.items():
        for metric in METRICS:
            for form, values in forms.items():
                found = values[metric]
                if found.value is not None:
                    yield Measure(
                        f"rephrased_{metric}", model, found.value, found.records, found.low, found.high, form
                    )


def _checks(subject: Subject, seen: Mapping[ModelName, Values]) -> Iterator[Check]:
    policy = subject.policy
    limits = (
        ("probability", policy.max_rephrased_probability),
        ("extraction_strength", policy.max_rephrased_extraction_strength),
    )
    result, base = seen["result"], seen["base"]
    for metric, limit in limits:
        if limit is None:
            continue
        words = f"mean {metric.replace('_', ' ')} of forgotten answers in the worst form of the question, "
        yield worst(
            [
                at_most(
                    "rephrasing",
                    f"rephrased_{metric}",
                    words + form,
                    values[metric],
                    limit,
                    allowed(subject, base[form][metric].value),
                )
                for form, values in result.items()
            ]
        )


def _note(asked: Mapping[str, list[Example]], records: int) -> str:
    fewest = min(len(examples) for examples in asked.values())
    return (
        f"{records} records in {len(asked)} forms ({', '.join(asked)}), at least {fewest} records in each; all are "
        "written by rule, in English or without words. They say nothing about translations or cleverer questions."
    )
