"""Sampling: whether the records come back when a model is asked many times, with chance in its answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    by_record,
    shown_models,
)
from worker.evaluation.checks import Check, Value, at_most
from worker.evaluation.evaluate import GENERATION_ROWS, fitting
from worker.evaluation.leakage import LEAK_RECALL, Secret, leak_at_k, sample_answers
from worker.evaluation.membership import mean_interval
from worker.evaluation.metrics import prefix_length
from worker.unlearning.encoding import Example

FORGET = "forget"
SAMPLES = 32
JUDGED_K, SHOWN_K = 16, (1, 16)
MAX_NEW_TOKENS = 128  # as for greedy answers


class Sampling:
    """32 answers per forgotten record at temperature 1, and how many of them give it away."""

    name: ClassVar[ProbeName] = "sampling"
    cost: ClassVar[Cost] = "long"
    title: ClassVar[str] = "Does one of many sampled answers give a record away?"

    def ahead(self, subject: Subject, model: ModelName) -> None:
        """Measure a model."""
        asked = _asked(subject)
        if model in shown_models(subject):
            _leaks(subject, model, asked)

    def run(self, subject: Subject) -> Found:
        """Look."""
        asked = _asked(subject)
        leaks = {model: _leaks(subject, model, asked) for model in shown_models(subject)}
        found = {model: {k: _leak(counts, k, subject.seed) for k in SHOWN_K} for model, counts in leaks.items()}
        records = len(subject.records[FORGET])
        note = (
            f"{SAMPLES} answers at temperature 1 to each of {len(asked)} of {records} records; a leak holds at least "
            f"{LEAK_RECALL:.0%} of the true answer's words in order, and of those that the prompt does not say. "
            "Leak@k is the mean chance that one of k answers leaks. Long records are asked for by their first window."
        )
        return Found(list(_measures(found)), list(_checks(subject, found)), note)


def _asked(subject: Subject) -> list[tuple[Example, Secret]]:
    """What can be asked for, and what its answer would give away."""
    asked = [(example, secret) for example, secret in _secrets(subject) if secret.tellable]
    if not asked:
        raise NotApplicable("no answer of the forget set says anything that its prompt does not say")
    return asked


def _secrets(subject: Subject) -> Iterator[tuple[Example, Secret]]:
    """The first window of every record, and what its answer would give away."""
    for windows in by_record(subject.examples(FORGET)):
        ids, border = windows[0].input_ids, prefix_length(windows[0])
        prompt, answer = (
            str(subject.tokenizer.decode(list(part), skip_special_tokens=True))
            for part in (ids[:border], ids[border:])
        )
        yield windows[0], Secret(prompt, answer)


def _leaks(subject: Subject, model: ModelName, asked: Sequence[tuple[Example, Secret]]) -> list[int]:
    """How many of the samples of each record leak."""

    def measure() -> list[int]:
        with subject.model(model) as loaded:
            texts = fitting(
                GENERATION_ROWS * subject.batch_size,
                lambda size: sample_answers(
                    loaded,
                    subject.tokenizer,
                    [example for example, _ in asked],
                    samples=SAMPLES,
                    seed=subject.seed,
                    batch_size=size,
                    max_new_tokens=MAX_NEW_TOKENS,
                ),
            )
        return [sum(map(secret.told_by, mine)) for (_, secret), mine in zip(asked, texts, strict=True)]

    return subject.once(("sampling", model), measure)


def _leak(leaks: Sequence[int], k: int, seed: int) -> Value:
    """Leak@k with its interval over records."""
    mean = mean_interval([leak_at_k(SAMPLES, count, k) for count in leaks], seed)
    return Value(mean.value, len(leaks), mean.low, mean.high)


def _measures(found: Mapping[ModelName, Mapping[int, Value]]) -> Iterator[Measure]:
    for model, leaks in found.items():
        for k, leak in leaks.items():
            if leak.value is not None:
                yield Measure("sampled_leak", model, leak.value, leak.records, leak.low, leak.high, f"leak@{k}")


def _checks(subject: Subject, found: Mapping[ModelName, Mapping[int, Value]]) -> Iterator[Check]:
    limit = subject.policy.max_sampled_leak
    if limit is not None:
        words = f"chance that at least one of {JUDGED_K} sampled answers gives a forgotten record away"
        result, base = found["result"][JUDGED_K], found["base"][JUDGED_K]
        yield at_most("sampling", "sampled_leak", words, result, limit, allowed(subject, base.value))
