"""Relearning: how much of the forgotten somebody gets back who holds half of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, get_args

import numpy as np

from app.methods import ProbeName
from worker.evaluation.battery.base import Cost, Found, Measure, ModelName, NotApplicable, Subject
from worker.evaluation.checks import Check, Value, at_most, worst
from worker.evaluation.quick import Shown, shown
from worker.evaluation.tuning import LEAST_RATE, MAX_GRAD_NORM, MOST_ROWS, Tuner, Tuning
from worker.unlearning.encoding import Example

Attacker = Literal["the adapter goes on training", "a new adapter on top"]
ATTACKERS: tuple[Attacker, ...] = get_args(Attacker)
STEPS = (0, 10, 20, 50)
METRICS = ("probability", "extraction_strength")
Attack = tuple[Attacker, int]
"""Who trains, and for how many steps."""


class Relearning:
    """Training on one half of the forget set; recall of the other (arXiv 2410.08827).

    What a model that never saw the records learns of one half from the other is no leak, so it is taken off. The base
    model alone has no adapter that could go on training. A new one on it is no stand-in: it has to learn first how
    these records are written, which an adapter that was trained on others of their kind knows already.
    """

    name: ClassVar[ProbeName] = "relearning"
    cost: ClassVar[Cost] = "long"
    title: ClassVar[str] = "Does half of the forgotten records bring back the other half?"

    def ahead(self, subject: Subject, model: ModelName) -> None:
        """Measure a model."""
        known, asked = _halves(subject)
        if model == subject.reference:
            _attacked(subject, model, known, asked)

    def run(self, subject: Subject) -> Found:
        """Look."""
        known, asked = _halves(subject)
        result, reference = _attacked(subject, "result", known, asked), subject.reference
        note = (
            f"trained on {len({example.record for example in known})} records drawn by the seed, measured on the "
            "others; "
        )
        if reference is None:
            note += "the base model knows the records, so that there is nothing to take off and nothing is judged"
            return Found(_measures("result", result), (), note)
        never_seen = _attacked(subject, reference, known, asked)
        measures = [*_measures("result", result), *_measures(reference, never_seen)]
        note += f"excess is over the {reference} under the same attack"
        if reference == "base":
            note += f"; without a control, {ATTACKERS[0]!r} is measured and not judged"
        return Found(measures, _checks(subject, result, never_seen), note)


def _halves(subject: Subject) -> tuple[list[Example], list[Example]]:
    known, asked = halves(subject.examples("forget"), subject.seed)
    if not known:
        raise NotApplicable("one record has no two halves")
    return known, asked


def halves(examples: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """A random half of the records that have labels, and the rest, which has one more where their number is odd."""
    records = sorted({example.record for example in examples if example.labels})
    drawn = np.random.default_rng([seed, len(records)]).permutation(records)[: len(records) // 2]
    chosen = set(drawn.tolist())
    return [e for e in examples if e.record in chosen], [e for e in examples if e.record not in chosen]


def _attacked(
    subject: Subject, name: ModelName, known: Sequence[Example], asked: Sequence[Example]
) -> dict[Attack, Shown]:
    """What a model shows of ``asked`` after so many steps on ``known``, by every attacker that it allows."""
    return subject.once(("relearning", name), lambda: _attacks(subject, name, known, asked))


def _attacks(
    subject: Subject, name: ModelName, known: Sequence[Example], asked: Sequence[Example]
) -> dict[Attack, Shown]:
    method, found = subject.method, dict[Attack, Shown]()
    rate = max(method.learning_rate, LEAST_RATE)
    tuning = Tuning(rate, min(method.forget_batch_size, MOST_ROWS), MAX_GRAD_NORM, subject.seed)
    for attacker in ATTACKERS[1:] if name == "base" else ATTACKERS:
        goes_on = attacker == ATTACKERS[0]
        with subject.model(name) if goes_on else subject.on_top(name, subject.seed) as model:
            tuner = Tuner(model, subject.tokenizer, known, tuning)
            for step in STEPS:
                tuner.train_to(step)
                found[attacker, step] = shown(model, subject.tokenizer, asked, subject.batch_size)
    return found


def _measures(model: ModelName, found: Mapping[Attack, Shown]) -> list[Measure]:
    return [
        Measure(f"relearned_{metric}", model, getattr(seen, metric), seen.records, detail=f"{attacker}, {step} steps")
        for metric in METRICS
        for (attacker, step), seen in found.items()
    ]


def _checks(subject: Subject, result: Mapping[Attack, Shown], never_seen: Mapping[Attack, Shown]) -> list[Check]:
    """The attack after which the result is furthest beyond the reference. Without a step there is none."""
    limit = subject.policy.max_relearned_excess
    if limit is None:
        return []
    return [
        worst(
            [
                at_most(
                    "relearning",
                    "relearned_excess",
                    "mean answer probability of one half of the forget set after training on the other, beyond the "
                    f"reference's, the worst attack: {attacker}, {step} steps",
                    Value(seen.probability - never_seen[attacker, step].probability, seen.records),
                    limit,
                )
                for (attacker, step), seen in result.items()
                if step and (attacker, step) in never_seen
            ]
        )
    ]
