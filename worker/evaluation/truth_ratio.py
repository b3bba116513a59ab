"""Truth ratio and forget quality of TOFU (arXiv 2401.06121): is a wrong answer as likely as the true one?

They need more than a record: a paraphrase of its answer and wrong answers of the same form. A record may bring them
as ``"paraphrase": str`` and ``"perturbed": [str, ...]``.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from worker.evaluation.metrics import token_scores
from worker.unlearning.encoding import Example

Record = Mapping[str, Any]
Encode = Callable[[Sequence[Record]], list[Example]]


@dataclass(frozen=True)
class Choice:
    """A question with one true answer and wrong ones.

    Attributes:
        correct: a record with the true answer, or with a paraphrase of it.
        wrong: the same record with wrong answers, at least one.
    """

    correct: Record
    wrong: tuple[Record, ...]


@dataclass(frozen=True)
class ForgetQuality:
    """Two-sided two-sample Kolmogorov-Smirnov test between truth ratios.

    Attributes:
        p_value: small where the two models can be told apart.
        log10_p: the same for values that are too small to read; finite, where p itself is no longer.
        statistic: largest distance of the two distributions, in [0, 1].
    """

    p_value: float
    log10_p: float
    statistic: float


def choice(record: Record) -> Choice | None:
    """The answers that a record brings; None without perturbed ones. Plain text has no answer to replace.

    The paraphrase takes the place of the true answer where there is one, as TOFU has it for records that were
    trained on: their own wording would be favoured by having been seen.
    """
    wrong = record.get("perturbed")
    if not wrong or not ("completion" in record or "messages" in record):
        return None
    paraphrase = record.get("paraphrase")
    correct = record if paraphrase is None else _answered(record, paraphrase)
    return Choice(correct, tuple(_answered(record, answer) for answer in wrong))


def _answered(record: Record, answer: str) -> Record:
    """The record with another answer."""
    if "completion" in record:
        return {**record, "completion": answer}
    turns = list(record["messages"])
    last = max(i for i, turn in enumerate(turns) if turn["role"] == "assistant")
    return {**record, "messages": [*turns[:last], {**turns[last], "content": answer}]}


def truth_ratio(correct_nll: float, wrong_nlls: Sequence[float]) -> float:
    """Geometric mean of the wrong answers' probabilities over the true answer's, each length-normalised.

    Args:
        correct_nll: of the true answer, nats per token.
        wrong_nlls: of the wrong ones, at least one.
    """
    return math.exp(-statistics.fmean(wrong_nlls)) / (math.exp(-correct_nll) + 1e-10)


def truth_ratios(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    choices: Sequence[Choice],
    encode: Encode,
    batch_size: int,
) -> list[float]:
    """Truth ratio of each question.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: of the base model.
        choices: questions; every answer has at least one token.
        encode: raw records to sequences.
        batch_size: sequences per pass.
    """
    records = [record for item in choices for record in (item.correct, *item.wrong)]
    nll = _record_nll(model, tokenizer, encode(records), batch_size)
    ratios, start = [], 0
    for item in choices:
        stop = start + 1 + len(item.wrong)
        ratios.append(truth_ratio(nll[start], [nll[i] for i in range(start + 1, stop)]))
        start = stop
    return ratios


def _record_nll(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], batch_size: int
) -> dict[int, float]:
    """NLL per label token of each record; windows are joined."""
    sums: dict[int, float] = defaultdict(float)
    labels: dict[int, int] = defaultdict(int)
    for example, score in zip(examples, token_scores(model, tokenizer, examples, batch_size), strict=True):
        sums[example.record] += score.nll_sum
        labels[example.record] += score.labels
    return {record: sums[record] / count for record, count in labels.items() if count}


def forget_truth(ratios: Sequence[float]) -> float:
    """TOFU's aggregate on forgotten records: mean of min(R, 1 / R), 1 where true and wrong are equally likely."""
    return statistics.fmean(min(ratio, 1 / ratio) if ratio > 0 else 0.0 for ratio in ratios)


def retain_truth(ratios: Sequence[float]) -> float:
    """TOFU's aggregate on kept records: mean of max(0, 1 - R), 1 where wrong answers are impossible."""
    return statistics.fmean(max(0.0, 1.0 - ratio) for ratio in ratios)


def forget_quality(ours: Sequence[float], control: Sequence[float]) -> ForgetQuality:
    """Compare truth ratios on the forget set with those of a model that never saw it.

    Args:
        ours, control: truth ratios of the same questions, at least one.
    """
    from scipy.stats import ks_2samp  # here: it takes long to load, and few jobs bring wrong answers

    found = ks_2samp(ours, control)
    p = float(found.pvalue)
    n, m = len(ours), len(control)
    # The smallest p that these sample sizes can give, full separation: 2 / C(n + m, n).
    least = math.log(2) - math.lgamma(n + m + 1) + math.lgamma(n + 1) + math.lgamma(m + 1)
    return ForgetQuality(p, math.log10(p) if p > 0 else least / math.log(10), float(found.statistic))
