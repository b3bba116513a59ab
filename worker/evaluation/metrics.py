"""Teacher-forced scores of single sequences.

The definitions follow TOFU (arXiv 2401.06121) and open-unlearning; docs/evaluation.md lists where and why
they differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from worker.unlearning.batches import by_length, collate
from worker.unlearning.encoding import Example
from worker.unlearning.models import Head, hidden_states, pad_id
from worker.unlearning.scoring import label_scores


@dataclass(frozen=True)
class TokenScores:
    """Teacher-forced scores of one sequence, as sums and counts, so that windows of a record can be added up.

    Attributes:
        nll_sum: NLL of all labels in nats, the end token included.
        labels: number of labels, the end token included.
        answer_tokens: labels without a final end token.
        matches: how many answer tokens are the model's first choice.
        matching_suffix: length of the longest run of matches that reaches the last answer token.
        drafted: length of the run of matches that starts behind `prefix_length`, the end token included: so many
            tokens of the true answer are what greedy decoding would produce.
    """

    nll_sum: float
    labels: int
    answer_tokens: int
    matches: int
    matching_suffix: int
    drafted: int = 0


def prefix_length(example: Example) -> int:
    """How many leading tokens the model is given before it generates.

    The prompt. A sequence without one (plain text, a later window of a long record) is continued from its
    first half, because one token says nothing about which text is meant.
    """
    return example.prompt_length if example.prompt_length > 1 else max(1, len(example.input_ids) // 2)


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
            scores[index] = _scores(examples[index], nll[start:stop], match[start:stop], tokenizer.eos_token_id)
            start = stop
    return scores


def _scores(example: Example, nll: Sequence[float], match: Sequence[bool], end: int | None) -> TokenScores:
    """Sums of one sequence. A last label that is the end token does not count as answer."""
    answer = match[:-1] if example.labels[-1] == end else match
    suffix = _run(answer[::-1])
    drafted = _run(match[prefix_length(example) - example.prompt_length :])
    return TokenScores(sum(nll), len(nll), len(answer), sum(answer), suffix, drafted)


def _run(match: Sequence[bool]) -> int:
    """How many are right before the first that is not."""
    return next((i for i, right in enumerate(match) if not right), len(match))
