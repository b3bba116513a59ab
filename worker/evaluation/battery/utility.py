"""Utility: what was to be kept, and whether it was."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import ClassVar

from app.methods import ProbeName
from worker.evaluation.battery.base import Cost, Found, Measure, ModelName, Subject
from worker.evaluation.checks import Check, Value, at_least, at_most
from worker.evaluation.evaluate import RecordScores, SetScores
from worker.evaluation.metrics import token_scores
from worker.unlearning.encoding import Example

RETAIN, HOLDOUT = "retain", "holdout"
NEIGHBOUR_SHARE = 0.25  # of the kept records, those that are most like a forgotten one
# Plain sentences of our own, about nothing that a customer's records are about. What a model makes of them is no
# measure of its quality; that unlearning changes it would be one of collateral damage.
GENERAL = (
    "The sun rises in the east and sets in the west.",
    "Water freezes at zero degrees and boils at a hundred.",
    "She opened the window because the room was too warm.",
    "The train was late, so they walked along the river instead.",
    "A week has seven days, and a year has twelve months.",
    "He put the keys on the table and forgot about them.",
    "If it rains tomorrow, the match will be played next Sunday.",
    "Bread is made of flour, water, salt and a little yeast.",
    "The children were playing in the garden when the dog began to bark.",
    "To open the door, turn the handle to the left and push.",
    "Most birds can fly, but some of them swim better than they fly.",
    "The library closes at six in the evening, and at noon on Saturdays.",
)
METRICS = ("probability", "extraction_strength", "exact_memorisation", "rouge_l_recall", "nll")


class Utility:
    """Kept records, those of them that are nearest to the forgotten ones, and plain sentences."""

    name: ClassVar[ProbeName] = "utility"
    cost: ClassVar[Cost] = "seconds"
    title: ClassVar[str] = "Does the model still know what was to be kept?"

    def ahead(self, subject: Subject, model: ModelName) -> None:
        """Measure a model."""
        subject.scores(model)
        self._general(subject, model)

    def run(self, subject: Subject) -> Found:
        """Look."""
        near = neighbours(subject.examples("forget"), subject.examples(RETAIN))
        measures: list[Measure] = []
        general: dict[ModelName, Value] = {}
        kept: dict[ModelName, SetScores] = {}
        close: dict[ModelName, Value] = {}
        for model in subject.models:
            kept[model] = subject.scores(model)[RETAIN]
            close[model] = _of_records(kept[model].per_record, near)
            general[model] = self._general(subject, model)
            measures.extend(_measures(model, RETAIN, kept[model]))
            measures.append(_measure("neighbour_probability", model, close[model]))
            measures.append(_measure("general_nll", model, general[model]))
            if HOLDOUT in subject.records:
                measures.extend(_measures(model, HOLDOUT, subject.scores(model)[HOLDOUT]))
        checks = list(self._checks(subject, kept, close, general))
        note = f"neighbours are the {len(near)} kept records that share most tokens with a forgotten one"
        if not _says_something(subject, general["base"]):
            note += "; plain sentences are not judged: to this base model they are no likelier than random tokens"
        return Found([measure for measure in measures if measure.records], checks, note)

    def _general(self, subject: Subject, model: ModelName) -> Value:
        def measure() -> Value:
            examples = subject.encode([{"text": sentence} for sentence in GENERAL])
            with subject.model(model) as loaded:
                scores = token_scores(loaded, subject.tokenizer, examples, subject.batch_size)
            per_token = [score.nll_sum / score.labels for score in scores if score.labels]
            return Value(statistics.fmean(per_token) if per_token else None, len(per_token))

        return subject.once((self.name, model), measure)

    def _checks(
        self,
        subject: Subject,
        kept: dict[ModelName, SetScores],
        close: dict[ModelName, Value],
        general: dict[ModelName, Value],
    ) -> Iterator[Check]:
        policy = subject.policy
        for metric, words, limit in (
            ("probability", "answer probability", policy.min_retain_probability_ratio),
            ("rouge_l_recall", "ROUGE-L recall of greedy answers", policy.min_retain_rouge_l_recall_ratio),
        ):
            before, after = (Value(getattr(kept[m], metric), kept[m].records) for m in ("source", "result"))
            words = f"mean {words} on the retain set, after unlearning divided by before"
            yield at_least("utility", f"retain_{metric}_ratio", words, _ratio(before, after), limit)
        if policy.min_neighbour_probability_ratio is not None:
            words = "mean answer probability on the kept records nearest to the forget set, after divided by before"
            found = _ratio(close["source"], close["result"])
            limit = policy.min_neighbour_probability_ratio
            yield at_least("utility", "neighbour_probability_ratio", words, found, limit)
        if policy.max_general_nll_increase is not None and _says_something(subject, general["base"]):
            words = "nats per token by which plain sentences became less likely"
            found = _increase(general["source"], general["result"])
            yield at_most("utility", "general_nll_increase", words, found, policy.max_general_nll_increase)


def _says_something(subject: Subject, base: Value) -> bool:
    """Whether the base model finds plain sentences likelier than random tokens. Else they tell nothing of it."""
    return base.value is not None and base.value < math.log(len(subject.tokenizer))


def neighbours(forget: Sequence[Example], retain: Sequence[Example]) -> set[int]:
    """Records of the retain set that are most like one of the forget set: by Jaccard similarity of their tokens."""
    wanted = [set(example.input_ids) for example in forget]
    likeness: dict[int, float] = {}
    for example in retain:
        mine = set(example.input_ids)
        best = max((len(mine & other) / len(mine | other) for other in wanted), default=0.0)
        likeness[example.record] = max(best, likeness.get(example.record, 0.0))
    count = max(1, round(NEIGHBOUR_SHARE * len(likeness))) if likeness else 0
    # Ties go by the record's number, so that every model is asked the same.
    return set(sorted(likeness, key=lambda record: (-likeness[record], record))[:count])


def _of_records(scores: Sequence[RecordScores], chosen: set[int]) -> Value:
    values = [score.probability for score in scores if score.record in chosen]
    return Value(statistics.fmean(values) if values else None, len(values))


def _ratio(before: Value, after: Value) -> Value:
    """After over before. A source that scores 0 cannot show that it was kept: ratio 0."""
    records = min(before.records, after.records)
    if before.value is None or after.value is None:
        return Value(None, records)
    return Value(after.value / before.value if before.value > 0 else 0.0, records)


def _increase(before: Value, after: Value) -> Value:
    value = None if before.value is None or after.value is None else after.value - before.value
    return Value(value, min(before.records, after.records))


def _measures(model: ModelName, name: str, scores: SetScores) -> Iterator[Measure]:
    for metric in METRICS:
        yield Measure(f"{name}_{metric}", model, getattr(scores, metric), scores.records)


def _measure(name: str, model: ModelName, value: Value) -> Measure:
    return Measure(name, model, value.value or 0.0, 0 if value.value is None else value.records)
