"""A quick look at one set: answer probability and extraction strength, with teacher forcing alone."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedTokenizerBase

from worker.evaluation.evaluate import SetScores, fitting
from worker.evaluation.metrics import TokenScores, token_scores
from worker.unlearning.encoding import Example


@dataclass(frozen=True)
class Shown:
    """Means over the records of a set, as in `worker.evaluation.evaluate.SetScores`; 0 where there is none.

    Attributes:
        probability, extraction_strength: in [0, 1].
        records: that have an answer token.
    """

    probability: float
    extraction_strength: float
    records: int

    @classmethod
    def of(cls, scores: SetScores) -> Shown:
        """What a whole evaluation has shown."""
        return cls(scores.probability, scores.extraction_strength, scores.records)


def shown(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> Shown:
    """Score a set without generating an answer: a tenth of the time of `evaluate_model`, and the same two numbers.

    Args:
        model: in evaluation mode.
        tokenizer: of the base model.
        examples: records as sequences; windows of one record are joined by their tokens.
        batch_size: sequences per pass; fewer where memory runs out.
    """
    return all_shown(model, tokenizer, {"": examples}, batch_size)[""]


def all_shown(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, sets: Mapping[str, Sequence[Example]], batch_size: int
) -> dict[str, Shown]:
    """Score several sets in as few passes as one; the rest as in `shown`."""
    together = [example for examples in sets.values() for example in examples]
    scores = fitting(batch_size, lambda size: token_scores(model, tokenizer, together, size))
    found, start = {}, 0
    for name, examples in sets.items():
        found[name] = _means(examples, scores[start : start + len(examples)])
        start += len(examples)
    return found


def _means(examples: Sequence[Example], scores: Sequence[TokenScores]) -> Shown:
    records: dict[int, list[TokenScores]] = defaultdict(list)
    for example, score in zip(examples, scores, strict=True):
        records[example.record].append(score)
    answered = [parts for parts in records.values() if sum(part.answer_tokens for part in parts)]
    if not answered:
        return Shown(0.0, 0.0, 0)
    probability = math.fsum(
        math.exp(-sum(part.nll_sum for part in parts) / sum(part.labels for part in parts)) for parts in answered
    )
    strength = math.fsum(
        sum(part.matching_suffix for part in parts) / sum(part.answer_tokens for part in parts) for parts in answered
    )
    return Shown(probability / len(answered), strength / len(answered), len(answered))
