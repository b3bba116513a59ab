"""Scores of single sequences: teacher-forced token scores, and greedy answers compared by ROUGE.

The definitions follow TOFU (arXiv 2401.06121) and open-unlearning; docs/evaluation.md lists where and why
they differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from worker.unlearning.batches import by_length, collate
from worker.unlearning.encoding import Example
from worker.unlearning.models import Head, causal_model, context_length, hidden_states, pad_id
from worker.unlearning.scoring import label_scores

ANSWER_MARGIN = 16  # tokens that an answer may run on beyond the length of the true one


@dataclass(frozen=True)
class TokenScores:
    """Teacher-forced scores of one sequence, as sums and counts, so that windows of a record can be added up.

    Attributes:
        nll_sum: NLL of all labels in nats, the end token included.
        labels: number of labels, the end token included.
        answer_tokens: labels without a final end token.
        matches: how many answer tokens are the model's first choice.
        matching_suffix: length of the longest run of matches that reaches the last answer token.
    """

    nll_sum: float
    labels: int
    answer_tokens: int
    matches: int
    matching_suffix: int


@torch.no_grad()
def token_scores(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> list[TokenScores]:
    """Score every example, batched by length; results in the order of the examples."""
    head, device = Head(model), next(model.parameters()).device
    scores = [TokenScores(0.0, 0, 0, 0, 0)] * len(examples)
    labelled = [index for index, example in enumerate(examples) if example.labels]
    for part in by_length([examples[index] for index in labelled], batch_size):
        chosen = [labelled[i] for i in part]
        batch = collate([examples[index] for index in chosen], pad_id(tokenizer)).to(device)
        found = label_scores(head, hidden_states(model, batch), batch.labels)
        nll, match = (values.tolist() for values in found)  # (labels,) each
        start = 0
        for index in chosen:
            stop = start + len(examples[index].labels)
            ended = examples[index].labels[-1] == tokenizer.eos_token_id
            scores[index] = _scores(nll[start:stop], match[start:stop], ended=ended)
            start = stop
    return scores


def _scores(nll: Sequence[float], match: Sequence[bool], *, ended: bool) -> TokenScores:
    """Sums of one sequence. ``ended``: the last label is the end token, which does not count as answer."""
    answer = match[:-1] if ended else match
    suffix = next((i for i, right in enumerate(reversed(answer)) if not right), len(answer))
    return TokenScores(sum(nll), len(nll), len(answer), sum(answer), suffix)


@dataclass(frozen=True)
class Answer:
    """A greedy answer and the text that it is compared with."""

    reference: str
    generated: str


def prefix_length(example: Example) -> int:
    """How many leading tokens the model is given before it generates.

    The prompt. A sequence without one (plain text, a later window of a long record) is continued from its
    first half, because one token says nothing about which text is meant.
    """
    return example.prompt_length if example.prompt_length > 1 else max(1, len(example.input_ids) // 2)


def greedy_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    batch_size: int,
    max_new_tokens: int,
) -> list[Answer]:
    """Generate greedily from each example's prefix; results in the order of the examples.

    An answer stops at the end token, or `ANSWER_MARGIN` tokens beyond the length of the true answer, or at
    ``max_new_tokens``. The true answer is cut at ``max_new_tokens`` too, so that a perfect recall stays
    possible.
    """
    answers = [Answer("", "")] * len(examples)
    context = context_length(causal_model(model).config)
    for chosen in _generation_batches(examples, batch_size, max_new_tokens, context):
        prefixes = [examples[i].input_ids[: prefix_length(examples[i])] for i in chosen]
        limits = [_limit(examples[i], max_new_tokens, context) for i in chosen]
        rows = _generate(model, tokenizer, prefixes, max(limits))
        for index, row, limit in zip(chosen, rows, limits, strict=True):
            truth = examples[index].input_ids[prefix_length(examples[index]) :][:max_new_tokens]
            generated = _until_end(row[:limit], tokenizer.eos_token_id)
            answers[index] = Answer(_text(tokenizer, truth), _text(tokenizer, generated))
    return answers


def _limit(example: Example, max_new_tokens: int, context: int | None) -> int:
    """New tokens for one example. Does not depend on its batch, so neither does the score."""
    prefix = prefix_length(example)
    limit = min(max_new_tokens, len(example.input_ids) - prefix + ANSWER_MARGIN)
    return limit if context is None else max(1, min(limit, context - prefix))


def _generation_batches(
    examples: Sequence[Example], batch_size: int, max_new_tokens: int, context: int | None
) -> Iterator[list[int]]:
    """Batches of similar length. One that would run over the context is generated row by row."""
    for chosen in by_length(examples, batch_size):
        width = max(prefix_length(examples[i]) for i in chosen)
        room = max(_limit(examples[i], max_new_tokens, context) for i in chosen)
        if context is not None and width + room > context:
            yield from ([index] for index in chosen)
        else:
            yield chosen


@torch.no_grad()
def _generate(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prefixes: Sequence[Sequence[int]], limit: int
) -> list[list[int]]:
    """Greedy decoding of left-padded prefixes: rows of at most ``limit`` new tokens."""
    device = next(model.parameters()).device
    width = max(len(prefix) for prefix in prefixes)
    padding = pad_id(tokenizer)
    ids = torch.tensor([[padding] * (width - len(prefix)) + list(prefix) for prefix in prefixes], device=device)
    mask = torch.tensor([[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes], device=device)
    end = tokenizer.eos_token_id
    settings = _settings(do_sample=False, num_beams=1, max_new_tokens=limit, pad_token_id=padding, eos_token_id=end)
    causal: Any = causal_model(model)
    with _own_generation_defaults(causal):
        generated = causal.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    rows: list[list[int]] = generated[:, width:].tolist()
    return rows


def _settings(**values: object) -> GenerationConfig:
    """A generation configuration that holds these values and nothing else."""
    return GenerationConfig(**values)  # type: ignore[no-untyped-call]


@contextmanager
def _own_generation_defaults(causal: PreTrainedModel) -> Iterator[None]:
    """Hide the base model's generation_config.json.

    It may hold a repetition penalty, bad words or forced tokens, which would change "greedy" from model to
    model.
    """
    shipped, causal.generation_config = causal.generation_config, _settings()
    try:
        yield
    finally:
        causal.generation_config = shipped


def _until_end(ids: Sequence[int], end: int | None) -> Sequence[int]:
    """Tokens in front of the first end token."""
    return ids[: ids.index(end)] if end in ids else ids


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()


class _WordTokenizer:
    """Unicode words, and single characters of scripts without spaces. For what rouge-score cannot read."""

    _words = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")

    def tokenize(self, text: str) -> list[str]:
        """Words in lower case."""
        return self._words.findall(text.lower())


_LATIN = DefaultTokenizer(use_stemmer=True)
_LATIN_SCORER = RougeScorer(["rougeL"], use_stemmer=True)
_UNICODE_SCORER = RougeScorer(["rougeL"], tokenizer=_WordTokenizer())


def rouge_l_recall(answer: Answer) -> float:
    """Share of the reference's words that the generated text holds in order, as TOFU has it: stemmed, in [0,
    1].

    rouge-score knows a-z and 0-9 only: any other script would score 0 however well it was memorised. A
    reference without a single such word is therefore compared by Unicode words.
    """
    scorer = _LATIN_SCORER if _LATIN.tokenize(answer.reference) else _UNICODE_SCORER
    return float(scorer.score(answer.reference, answer.generated)["rougeL"].recall)
