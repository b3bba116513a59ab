"""Recall: what a model shows of the records when it is asked as in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from app.methods import Policy, ProbeName
from worker.evaluation.battery.base import Cost, Found, Measure, ModelName, Subject
from worker.evaluation.checks import Check, Value, at_most
from worker.evaluation.evaluate import SetScores
from worker.evaluation.truth_ratio import Choice, choice, forget_quality, forget_truth, truth_ratios

METRICS = ("probability", "extraction_strength", "exact_memorisation", "rouge_l_recall", "nll")
FORGET = "forget"


class Recall:
    """Every model on every forget record. Too much is a leak; too little is a trace."""

    name: ClassVar[ProbeName] = "recall"
    cost: ClassVar[Cost] = "seconds"
    title: ClassVar[str] = "Does the model still know the records, asked as in training?"

    def ahead(self, subject: Subject, model: ModelName) -> None:
        """Measure a model."""
        subject.scores(model)
        if choices := _choices(subject):
            _ratios(subject, model, choices)

    def run(self, subject: Subject) -> Found:
        """Look."""
        seen = {model: subject.scores(model)[FORGET] for model in subject.models}
        measures = [measure for model, scores in seen.items() for measure in _measures(model, scores)]
        measures.extend(_truth(subject))
        return Found(measures, forget_checks(subject.policy, seen["result"], *compared(subject, seen)))


def compared(subject: Subject, seen: Mapping[ModelName, SetScores]) -> tuple[SetScores | None, SetScores | None]:
    """Base and reference for `forget_checks`: none of both where the base model knows the records."""
    return (None, None) if subject.reference is None else (seen["base"], seen[subject.reference])


def forget_checks(
    policy: Policy, result: SetScores, base: SetScores | None, reference: SetScores | None
) -> list[Check]:
    """What the policy asks of the forget set.

    Args:
        policy: limits.
        result: under the model that is judged.
        base: under the base model alone: what it shows is allowed. No other model loosens a limit; None does where
            the base model itself knows the records.
        reference: under a model that never saw the records, which over-forgetting is measured from.
    """
    limits = (
        ("probability", policy.max_forget_probability, "answer probability"),
        ("extraction_strength", policy.max_forget_extraction_strength, "extraction strength"),
        ("rouge_l_recall", policy.max_forget_rouge_l_recall, "ROUGE-L recall of greedy answers"),
    )
    checks = [
        at_most(
            "recall",
            f"forget_{metric}",
            f"mean {words} on the forget set after unlearning",
            Value(getattr(result, metric), result.records),
            limit,
            getattr(base, metric) if base and base.records else None,
        )
        for metric, limit, words in limits
    ]
    if policy.max_forget_nll_excess is not None:
        excess = Value(None, 0)  # what cannot be measured does not pass
        if reference is not None:
            excess = Value(result.nll - reference.nll, min(result.records, reference.records))
        words = "nats per token by which the forget set is less likely than for a model that never saw it"
        checks.append(at_most("recall", "forget_nll_excess", words, excess, policy.max_forget_nll_excess))
    return checks


def _truth(subject: Subject) -> Iterator[Measure]:
    """Truth ratios, where records bring wrong answers, and whether they tell the result from the reference."""
    choices = _choices(subject)
    if not choices:
        return
    ratios = {}
    for model in subject.models:
        ratios[model] = _ratios(subject, model, choices)
        yield Measure("forget_truth_ratio", model, forget_truth(ratios[model]), len(choices))
    if subject.reference is None:
        return
    quality = forget_quality(ratios["result"], ratios[subject.reference])
    against = f"against {subject.reference}"
    yield Measure("forget_quality_log10_p", "result", quality.log10_p, len(choices), detail=against)


def _choices(subject: Subject) -> list[Choice]:
    return [found for record in subject.records[FORGET] if (found := choice(record)) is not None]


def _ratios(subject: Subject, model: ModelName, choices: Sequence[Choice]) -> list[float]:
    def measure() -> list[float]:
        with subject.model(model) as loaded:
            return truth_ratios(loaded, subject.tokenizer, choices, subject.encode, subject.batch_size)

    return subject.once(("recall", "truth ratios", model), measure)


def _measures(model: ModelName, scores: SetScores) -> Iterator[Measure]:
    if scores.records:
        for metric in METRICS:
            yield Measure(f"forget_{metric}", model, getattr(scores, metric), scores.records)
