"""Resurfacing: whether innocent further training brings records back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from app.methods import ProbeName
from worker.evaluation.battery.base import Cost, Found, Measure, ModelName, NotApplicable, Subject
from worker.evaluation.checks import Check, Value, at_most, worst
from worker.evaluation.quick import Shown, shown
from worker.evaluation.tuning import LEAST_RATE, MAX_GRAD_NORM, MOST_ROWS, Tuner, Tuning

METRICS = ("probability", "extraction_strength")
BEFORE = "before"
NOTE = "the reference had the same training; where that is the base model alone, with a fresh adapter"


@dataclass(frozen=True)
class Course:
    """One further training.

    Attributes:
        learning_rate: as a multiple of the unlearning's.
        epochs: passes over the kept records.
        most_steps: where it ends at the latest.
    """

    learning_rate: float
    epochs: int
    most_steps: int


JUDGED = (Course(1.0, 3, 600), Course(0.25, 3, 600))
# Where nothing is judged, as many steps as show where it goes.
LIGHT = (Course(1.0, 1, 24),)


class Resurfacing:
    """Training as usual on kept records alone, without a single forgotten one, and then recall again."""

    name: ClassVar[ProbeName] = "resurfacing"
    cost: ClassVar[Cost] = "minutes"
    title: ClassVar[str] = "Do records come back when the adapter goes on training on kept records alone?"

    def ahead(self, subject: Subject, model: ModelName) -> None:
        """Measure a model."""
        _require_kept_records(subject)
        if _limits(subject) != (None, None) and model == subject.reference:
            _trained(subject, model, JUDGED)

    def run(self, subject: Subject) -> Found:
        """Look."""
        _require_kept_records(subject)
        limits = _limits(subject)
        if limits == (None, None):
            note = "a short look at the result alone, which is not judged; a policy with limits on it trains longer"
            return Found(_measures("result", _trained(subject, "result", LIGHT)), (), note)
        result, reference = _trained(subject, "result", JUDGED), subject.reference
        never_seen = _trained(subject, reference, JUDGED) if reference else {}
        measures = [*_measures("result", result), *(_measures(reference, never_seen) if reference else ())]
        checks = [
            _check(metric, limit, result, never_seen)
            for metric, limit in zip(METRICS, limits, strict=True)
            if limit is not None
        ]
        return Found(measures, checks, NOTE if reference else "")


def _require_kept_records(subject: Subject) -> None:
    if not any(example.labels for example in subject.examples("retain")):
        raise NotApplicable("there is no kept record to go on training on")


def _limits(subject: Subject) -> tuple[float | None, float | None]:
    policy = subject.policy
    return policy.max_resurfaced_probability, policy.max_resurfaced_extraction_strength


def _trained(subject: Subject, name: ModelName, courses: Sequence[Course]) -> dict[str, Shown]:
    """The forget set before, and after each course, by its title."""
    return subject.once(("resurfacing", name), lambda: _courses(subject, name, courses))


def _courses(subject: Subject, name: ModelName, courses: Sequence[Course]) -> dict[str, Shown]:
    """Every course starts from the same factors."""
    forget, retain, method = subject.examples("forget"), subject.examples("retain"), subject.method
    # With or without a fresh adapter, which adds nothing, the base model shows the same.
    found = {BEFORE: Shown.of(subject.scores(name)["forget"])}
    for course in courses:
        rate = course.learning_rate * max(method.learning_rate, LEAST_RATE)
        tuning = Tuning(rate, min(method.retain_batch_size, MOST_ROWS), MAX_GRAD_NORM, subject.seed)
        with subject.fresh(subject.seed) if name == "base" else subject.model(name) as model:
            tuner = Tuner(model, subject.tokenizer, retain, tuning)
            steps = min(course.epochs * tuner.epoch, course.most_steps)
            tuner.train_to(steps)
            title = f"learning rate {rate:g}, {steps} steps"
            found[title] = shown(model, subject.tokenizer, forget, subject.batch_size)
    return found


def _measures(model: ModelName, found: Mapping[str, Shown]) -> list[Measure]:
    return [
        Measure(f"resurfaced_{metric}", model, getattr(seen, metric), seen.records, detail=title)
        for metric in METRICS
        for title, seen in found.items()
    ]


def _check(metric: str, limit: float, result: Mapping[str, Shown], never_seen: Mapping[str, Shown]) -> Check:
    """The worst course. What recall shows without any training is judged by recall."""
    words = f"mean {metric.replace('_', ' ')} on the forget set after training on kept records alone, the worst of "
    return worst(
        [
            at_most(
                "resurfacing",
                f"resurfaced_{metric}",
                f"{words}{len(result) - 1}: {title}",
                Value(getattr(seen, metric), seen.records),
                limit,
                getattr(never_seen[title], metric) if never_seen else None,
            )
            for title, seen in result.items()
            if title != BEFORE
        ]
    )
