"""Membership tests: can somebody who asks the model tell records that it was trained on from look-alikes?

Four scores that need one forward pass each, as in open-unlearning; a score is like a loss, so that a lower one speaks
for a member. docs/evaluation.md has the formulas and their limits.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from worker.evaluation.evaluate import fitting
from worker.unlearning.batches import by_length, collate
from worker.unlearning.encoding import Example
from worker.unlearning.models import Head, hidden_states, pad_id
from worker.unlearning.scoring import CHUNK_ELEMENTS

ScoreName = Literal["loss", "zlib", "min_k", "min_k_plus_plus"]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
LOWEST_SHARE = 0.4  # k of min-k and min-k++
LEAST_VARIANCE = 1e-6
LEAST_LOG_PROBABILITY = -1e4  # e to its power is 0; minus infinity would make 0 times infinity
RESAMPLES = 1000
CONFIDENCE = 0.95

Direction = Literal["too well known", "too little known", "no difference"]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def membership_scores(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> dict[ScoreName, Floats]:
    """Scores of each record, in the order of their numbers: (records,) by the name of the score.

    Windows of a long record are joined. A record without an answer token has no score and is left out.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: of the base model.
        examples: records as sequences.
        batch_size: sequences per pass; fewer where memory runs out.
    """
    tokens = fitting(batch_size, lambda size: _token_scores(model, tokenizer, examples, size))
    records: dict[int, list[int]] = {}
    for index, example in enumerate(examples):
        records.setdefault(example.record, []).append(index)
    found: dict[ScoreName, list[float]] = {name: [] for name in SCORES}
    for _, windows in sorted(records.items()):
        parts = [tokens[index] for index in windows]
        answer = np.concatenate(
            [part[_without_end(examples[i], tokenizer)] for i, part in zip(windows, parts, strict=True)]
        )
        if len(answer):
            text = "".join(examples[index].answer for index in windows)
            for name, value in _record_scores(np.concatenate(parts), answer, text).items():
                found[name].append(value)
    return {name: np.array(values) for name, values in found.items()}


def _without_end(example: Example, tokenizer: PreTrainedTokenizerBase) -> slice:
    """The labels without a final end token."""
    ended = bool(example.labels) and example.labels[-1] == tokenizer.eos_token_id
    return slice(len(example.labels) - ended)


def _record_scores(labels: Floats, answer: Floats, text: str) -> dict[ScoreName, float]:
    """Scores of one record.

    Args:
        labels: (labels, 2) log p and standardised log p of every label, the end token included.
        answer: (n, 2) the same without the end token, n at least 1.
        text: of the answer.
    """
    loss = -float(labels[:, 0].mean())
    # At least one token: 0.4 of two is none, and a mean of none is NaN.
    count = max(1, math.floor(LOWEST_SHARE * len(answer)))
    lowest = np.sort(answer, axis=0)[:count].mean(axis=0)
    return {
        "loss": loss,
        "zlib": loss / len(zlib.compress(text.encode())),
        "min_k": -float(lowest[0]),
        "min_k_plus_plus": -float(lowest[1]),
    }


@torch.no_grad()
def _token_scores(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> list[Floats]:
    """(labels, 2) of each example: log p of its labels, and the same standardised."""
    head, device = Head(model), next(model.parameters()).device
    scores = [np.empty((0, 2))] * len(examples)
    labelled = [index for index, example in enumerate(examples) if example.labels]
    for part in by_length([examples[index] for index in labelled], batch_size):
        chosen = [labelled[i] for i in part]
        batch = collate([examples[index] for index in chosen], pad_id(tokenizer)).to(device)
        values = _label_values(head, hidden_states(model, batch), batch.labels).cpu().double().numpy()
        borders = np.cumsum([len(examples[index].labels) for index in chosen])[:-1]
        for index, rows in zip(chosen, np.split(values, borders), strict=True):
            scores[index] = rows
    return scores


def _label_values(head: Head, hidden: Tensor, labels: Tensor) -> Tensor:
    """(labels, hidden), (labels,) -> (labels, 2), in chunks: few tensors of (chunk, vocab) are alive at once."""
    size = max(1, CHUNK_ELEMENTS.get(hidden.device.type, 2**24) // head.vocabulary // 2)
    parts = [
        _standardised(head(hidden[at : at + size]), labels[at : at + size]) for at in range(0, len(labels), size)
    ]
    return torch.cat(parts)


def _standardised(logits: Tensor, labels: Tensor) -> Tensor:
    """log p(y), and (log p(y) - mu) / sigma with mu and sigma those of log p(v) for v drawn from the model."""
    log_p = logits.float().log_softmax(-1).clamp_(min=LEAST_LOG_PROBABILITY)  # (chunk, vocab)
    p = log_p.exp()
    mu = (p * log_p).sum(-1)
    # About the mean, not E[x^2] - mu^2: that difference of large numbers loses a small variance to rounding.
    variance = (p * (log_p - mu[:, None]).square_()).sum(-1).clamp_(min=LEAST_VARIANCE)
    mine = log_p.gather(-1, labels[:, None]).squeeze(-1)
    return torch.stack([mine, (mine - mu) / variance.sqrt()], dim=-1)


def auc(members: Floats, others: Floats) -> float:
    """P(score of a non-member > score of a member), ties half: 1 where every member is better known.

    Args:
        members, others: (records,) scores of either group, none empty.
    """
    return float(_compared(members, others).mean())


def _compared(members: Floats, others: Floats) -> NDArray[np.float32]:
    """(members, others): 1 where the member's score is the lower one, half for a tie, else 0."""
    higher = others[None, :] > members[:, None]
    ties = others[None, :] == members[:, None]
    compared: NDArray[np.float32] = higher.astype(np.float32) + np.float32(0.5) * ties.astype(np.float32)
    return compared


class Bootstrap:
    """Intervals of AUCs: records of both groups are drawn again with replacement, 1,000 times.

    Every AUC and every difference of two is measured on the same draws, so that a difference has the interval of a
    paired comparison.
    """

    def __init__(self, members: int, others: int, seed: int) -> None:
        """So many records in either group, at least one each."""
        random = np.random.default_rng([seed, members, others])
        # How often each record was drawn, as a share: (resamples, records).
        self._members = random.multinomial(members, np.full(members, 1 / members), RESAMPLES) / members
        self._others = random.multinomial(others, np.full(others, 1 / others), RESAMPLES) / others

    def auc(self, members: Floats, others: Floats) -> Interval:
        """AUC of one model's scores."""
        return interval(auc(members, others), self.draws(members, others))

    def difference(self, ours: tuple[Floats, Floats], theirs: tuple[Floats, Floats]) -> Interval:
        """AUC of one model minus that of another, whose scores are of the same records in the same order."""
        return interval(auc(*ours) - auc(*theirs), self.draws(*ours) - self.draws(*theirs))

    def draws(self, members: Floats, others: Floats) -> Floats:
        """AUC of every resample: (resamples,)."""
        rows = self._members.astype(np.float32) @ _compared(members, others)  # (resamples, others)
        draws: Floats = (rows * self._others).sum(axis=1)
        return draws


def interval(value: float, draws: Floats) -> Interval:
    """The percentiles of resampled values. It always holds the value itself."""
    tail = (1 - CONFIDENCE) / 2
    low, high = (float(np.quantile(draws, share)) for share in (tail, 1 - tail))
    return Interval(value, min(low, value), max(high, value))


def mean_interval(values: Sequence[float], seed: int) -> Interval:
    """Mean over records, at least one, with its interval by the bootstrap."""
    array = np.array(values, dtype=np.float64)
    random = np.random.default_rng([seed, len(array)])
    draws = array[random.integers(len(array), size=(RESAMPLES, len(array)))].mean(axis=1)
    return interval(float(array.mean()), draws)


def distance(difference: Interval) -> Interval:
    """How far an AUC is from another, in either direction. An interval around 0 has 0 as its lower end."""
    ends = sorted((abs(difference.low), abs(difference.high)))
    within = difference.low <= 0 <= difference.high
    return Interval(abs(difference.value), 0.0 if within else ends[0], ends[1])


def direction(difference: Interval) -> Direction:
    """How members stand out, by an AUC minus what it should be; no difference while the interval holds 0."""
    if difference.low > 0:
        return "too well known"
    return "too little known" if difference.high < 0 else "no difference"


def privacy_leakage(ours: float, retrained: float) -> float | None:
    """PrivLeak as open-unlearning has it, in percent; None where it is not defined.

    100 ((1 - AUC) - (1 - AUC_retrained)) / (1 - AUC_retrained), both by min-k: below 0 the records are still known,
    above 0 they were unlearned too far. -100 is a full leak when the retrained model tells nothing apart.

    Args:
        ours: AUC of the model that is judged, as `auc` gives it.
        retrained: AUC of a model that never saw the records.
    """
    return None if retrained >= 1 else 100 * ((1 - ours) - (1 - retrained)) / (1 - retrained)
