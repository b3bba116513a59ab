"""Evaluate a model on named sets of records."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from worker.evaluation.generation import greedy_answers
from worker.evaluation.metrics import TokenScores, token_scores
from worker.evaluation.rouge import rouge_l_recall
from worker.unlearning.encoding import Example
from worker.unlearning.step import is_out_of_memory

_Result = TypeVar("_Result")
GENERATION_ROWS = 4  # for each row of a scoring pass: a step of decoding holds one token of a row


@dataclass(frozen=True)
class RecordScores:
    """Scores of one record; windows of a long record are joined by their number of tokens.

    Attributes:
        record: 0-based index of the record.
        probability: exp(-nll), the length-normalised probability of the answer, in [0, 1].
        nll: mean NLL in nats per label token, the end token included.
        extraction_strength: share of the answer that the model completes on its own, given the rest, in [0,
            1].
        exact_memorisation: share of answer tokens that are the model's first choice, in [0, 1].
        rouge_l_recall: of the greedy answer, in [0, 1].
    """

    record: int
    probability: float
    nll: float
    extraction_strength: float
    exact_memorisation: float
    rouge_l_recall: float


@dataclass(frozen=True)
class SetScores:
    """Means over the records of one set. With no record at all, every mean is 0 and ``records`` says so.

    Attributes:
        records: records that the means are over.
        skipped: records left out because they have no answer token.
        per_record: the scores behind the means, in the order of the records.
    """

    records: int
    skipped: int
    probability: float
    nll: float
    extraction_strength: float
    exact_memorisation: float
    rouge_l_recall: float
    per_record: tuple[RecordScores, ...]


def evaluate_model(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Example]],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 128,
) -> dict[str, SetScores]:
    """Score every set. The result depends neither on ``batch_size`` nor on the other sets, beyond rounding.

    Args:
        model: a causal language model, with or without a PEFT adapter. Put into evaluation mode meanwhile.
        tokenizer: tokenizer of the base model.
        sets: examples by the name of their set, such as "forget" and "retain".
        batch_size: sequences per forward pass; fewer where memory runs out.
        max_new_tokens: cap on generated tokens per answer.
    """
    was_training = model.training
    model.eval()
    try:
        scores = {name: _scores(model, tokenizer, examples, batch_size) for name, examples in sets.items()}
        recalls = _recalls(model, tokenizer, sets, scores, batch_size, max_new_tokens)
        return {name: _of_set(examples, scores[name], recalls[name]) for name, examples in sets.items()}
    finally:
        model.train(was_training)


def base_scores(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Example]],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 128,
) -> dict[str, SetScores]:
    """The same scores with the adapter switched off: a control that never saw the records in training."""
    with model.disable_adapter():
        return evaluate_model(model, tokenizer, sets, batch_size=batch_size, max_new_tokens=max_new_tokens)


def sample_examples(examples: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """All windows of at most ``limit`` records, drawn without replacement; order kept.

    The same seed draws the same records, so that source and result are measured on the same sample.
    """
    records = sorted({example.record for example in examples})
    if len(records) <= limit:
        return list(examples)
    drawn = np.random.default_rng(seed).choice(len(records), size=limit, replace=False)
    chosen = {records[index] for index in drawn.tolist()}
    return [example for example in examples if example.record in chosen]


def _scores(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> list[TokenScores]:
    return fitting(batch_size, lambda size: token_scores(model, tokenizer, examples, size))


def _recalls(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    sets: Mapping[str, Sequence[Example]],
    scores: Mapping[str, Sequence[TokenScores]],
    batch_size: int,
    max_new_tokens: int,
) -> dict[str, list[float]]:
    """ROUGE-L recall of the greedy answer to each example; 0 where there is nothing to answer.

    The answers of all sets are written together: a step of decoding costs nearly the same for few rows as for many.
    """
    asked = [(name, i) for name, found in scores.items() for i, score in enumerate(found) if score.answer_tokens]
    examples = [sets[name][i] for name, i in asked]
    drafts = [scores[name][i].drafted for name, i in asked]
    answers = fitting(
        GENERATION_ROWS * batch_size,
        lambda size: greedy_answers(model, tokenizer, examples, size, max_new_tokens, drafts),
    )
    recalls = {name: [0.0] * len(found) for name, found in scores.items()}
    for (name, i), answer in zip(asked, answers, strict=True):
        recalls[name][i] = rouge_l_recall(answer)
    return recalls


def _of_set(examples: Sequence[Example], scores: Sequence[TokenScores], recalls: Sequence[float]) -> SetScores:
    """The scores of one set, example by example, as those of its records."""
    windows: dict[int, list[tuple[TokenScores, float]]] = defaultdict(list)
    for example, score, recall in zip(examples, scores, recalls, strict=True):
        windows[example.record].append((score, recall))
    joined = [_join(record, parts) for record, parts in sorted(windows.items())]
    return _means([score for score in joined if score is not None], skipped=joined.count(None))


def fitting(batch_size: int, work: Callable[[int], _Result]) -> _Result:
    """Do some work, and start it over with half of the sequences per pass as often as memory runs out."""
    while True:
        try:
            return work(batch_size)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if batch_size == 1 or not is_out_of_memory(error):
                raise
        batch_size //= 2
        # Outside of the handler, where the traceback no longer holds the tensors of the failed pass.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _join(record: int, parts: Sequence[tuple[TokenScores, float]]) -> RecordScores | None:
    """Scores of a record from its windows, weighted by answer tokens; None when it has no answer token."""
    tokens = sum(score.answer_tokens for score, _ in parts)
    if tokens == 0:
        return None
    # P(a|q) = exp(-(1/|A|) sum of -log p), A = labels with the end token (TOFU).
    nll = sum(score.nll_sum for score, _ in parts) / sum(score.labels for score, _ in parts)
    return RecordScores(
        record=record,
        probability=math.exp(-nll),
        nll=nll,
        # 1 - k/n for the smallest k with all predictions from k on right: matching suffix over length.
        extraction_strength=sum(score.matching_suffix for score, _ in parts) / tokens,
        exact_memorisation=sum(score.matches for score, _ in parts) / tokens,
        rouge_l_recall=sum(score.answer_tokens * recall for score, recall in parts) / tokens,
    )


def _means(scores: Sequence[RecordScores], *, skipped: int) -> SetScores:
    """Unweighted means over records."""

    def mean(name: str) -> float:
        return math.fsum(getattr(score, name) for score in scores) / len(scores) if scores else 0.0

    return SetScores(
        records=len(scores),
        skipped=skipped,
        probability=mean("probability"),
        nll=mean("nll"),
        extraction_strength=mean("extraction_strength"),
        exact_memorisation=mean("exact_memorisation"),
        rouge_l_recall=mean("rouge_l_recall"),
        per_record=tuple(scores),
    )
