"""Answers that a model writes: greedy ones, which start from what is known already, and samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from worker.evaluation.metrics import prefix_length
from worker.evaluation.rouge import Answer
from worker.unlearning.batches import longest_first
from worker.unlearning.encoding import Example
from worker.unlearning.models import causal_model, context_length, pad_id

ANSWER_MARGIN = 16  # tokens that an answer may run on beyond the length of the true one


def greedy_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    batch_size: int,
    max_new_tokens: int,
    drafts: Sequence[int] | None = None,
) -> list[Answer]:
    """Generate greedily from each example's prefix; results in the order of the examples.

    An answer stops at the end token, or `ANSWER_MARGIN` tokens beyond the length of the true answer, or at
    ``max_new_tokens``. The true answer is cut at ``max_new_tokens`` too, so that a perfect recall stays
    possible.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: of the base model.
        examples: what to ask.
        batch_size: sequences per pass.
        max_new_tokens: cap per answer.
        drafts: `TokenScores.drafted` of each example under the same model. Greedy decoding is the model's first
            choice after what it chose before. As long as that is the true answer, teacher forcing has shown it
            already: only what comes behind it is generated, and nothing where the draft reaches the end.
    """
    context = context_length(causal_model(model).config)
    truths = [example.input_ids[prefix_length(example) :] for example in examples]
    limits = [answer_limit(example, max_new_tokens, context) for example in examples]
    known = [
        truth[: min(draft, limit)]
        for truth, draft, limit in zip(truths, drafts or [0] * len(truths), limits, strict=True)
    ]
    end = tokenizer.eos_token_id
    rows = [_until_end(row, end) for row in known]
    missing = [i for i, row in enumerate(known) if len(row) == len(rows[i]) < limits[i]]
    prefixes = [(*examples[i].input_ids[: prefix_length(examples[i])], *known[i]) for i in missing]
    room = [limits[i] - len(known[i]) for i in missing]
    for i, row in zip(missing, greedy(model, tokenizer, prefixes, room, batch_size), strict=True):
        rows[i] = _until_end((*known[i], *row), end)
    return [
        Answer(decoded(tokenizer, truth[:max_new_tokens]), decoded(tokenizer, row))
        for truth, row in zip(truths, rows, strict=True)
    ]


def answer_limit(example: Example, max_new_tokens: int, context: int | None) -> int:
    """New tokens for one example. Does not depend on its batch, so neither does the score."""
    prefix = prefix_length(example)
    limit = min(max_new_tokens, len(example.input_ids) - prefix + ANSWER_MARGIN)
    return limit if context is None else max(1, min(limit, context - prefix))


def greedy(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prefixes: Sequence[Sequence[int]],
    limits: Sequence[int],
    batch_size: int,
) -> list[list[int]]:
    """Greedy continuations, at most ``limits`` new tokens each; in the order of the prefixes.

    An end token is followed by nothing or by padding.
    """
    rows: list[list[int]] = [[] for _ in prefixes]
    for chosen in _batches(prefixes, limits, batch_size, context_length(causal_model(model).config)):
        most = max(limits[i] for i in chosen)
        for i, row in zip(chosen, generate(model, tokenizer, [prefixes[i] for i in chosen], most), strict=True):
            rows[i] = row[: limits[i]]
    return rows


def _batches(
    prefixes: Sequence[Sequence[int]], limits: Sequence[int], size: int, context: int | None
) -> Iterator[list[int]]:
    """Batches that end together: by tokens to generate. One that would run over the context goes row by row."""
    for chosen in longest_first(limits, size):
        width = max(len(prefixes[i]) for i in chosen)
        if context is not None and width + max(limits[i] for i in chosen) > context:
            yield from ([i] for i in chosen)
        else:
            yield chosen


@torch.no_grad()
def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prefixes: Sequence[Sequence[int]],
    limit: int,
    *,
    sampled: bool = False,
) -> list[list[int]]:
    """Continue left-padded prefixes: rows of at most ``limit`` new tokens.

    Greedily; or sampled from the model's whole distribution, at temperature 1, by torch's global generator.
    """
    device = next(model.parameters()).device
    width = max(len(prefix) for prefix in prefixes)
    padding = pad_id(tokenizer)
    ids = torch.tensor([[padding] * (width - len(prefix)) + list(prefix) for prefix in prefixes], device=device)
    mask = torch.tensor([[0] * (width - len(prefix)) + [1] * len(prefix) for prefix in prefixes], device=device)
    choice: dict[str, Any] = {"do_sample": False, "num_beams": 1}
    if sampled:
        choice = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    end = tokenizer.eos_token_id
    settings = _settings(**choice, max_new_tokens=limit, pad_token_id=padding, eos_token_id=end)
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


def answered(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text in front of the first end token."""
    return decoded(tokenizer, _until_end(ids, tokenizer.eos_token_id))


def decoded(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """Text of tokens, without special ones and without white space around it."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
