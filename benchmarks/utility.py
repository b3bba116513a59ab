"""Model utility and forget quality as TOFU defines them (arXiv 2401.06121), on the retain and the forget set at hand.

TOFU's utility also covers real authors and world facts. The small models of these benchmarks know neither, so what
remains is the retain set's three numbers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from peft import PeftModel
from scipy.stats import ks_2samp
from transformers import PreTrainedTokenizerBase

from benchmarks.worlds import Question, World
from worker.evaluation.evaluate import evaluate_model
from worker.unlearning.models import pad_id
from worker.unlearning.step import sequence_nll

UTILITY_RECORDS = 40


@dataclass(frozen=True)
class Utility:
    """Means over retained records, and their harmonic mean.

    Attributes:
        probability: length-normalised, of the answers.
        rouge_l_recall: of greedy answers.
        truth_ratio: mean of max(0, 1 - R), R the truth ratio of each question.
        harmonic_mean: of the three; 0 if one of them is.
        records: how many.
    """

    probability: float
    rouge_l_recall: float
    truth_ratio: float
    harmonic_mean: float
    records: int


def truth_ratios(
    world: World, model: PeftModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> list[float]:
    """R = (geometric mean of the wrong answers' probabilities) / (the true answer's), each length-normalised."""
    records = [record for question in questions for record in (question.correct, *question.wrong)]
    examples = world.encode(records, tokenizer)
    nll = sequence_nll(model, examples, pad_id(tokenizer), 16).tolist()
    per_token = [total / len(example.labels) for total, example in zip(nll, examples, strict=True)]
    result, start = [], 0
    for question in questions:
        stop = start + 1 + len(question.wrong)
        correct, wrong = per_token[start], per_token[start + 1 : stop]
        result.append(math.exp(-statistics.fmean(wrong)) / (math.exp(-correct) + 1e-10))
        start = stop
    return result


def measure_utility(world: World, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> Utility:
    """Of a fixed sample of the retained questions."""
    questions = world.retain_questions[:: max(1, len(world.retain_questions) // UTILITY_RECORDS)]
    examples = world.encode([question.correct for question in questions], tokenizer)
    scores = evaluate_model(model, tokenizer, {"retain": examples})["retain"]
    ratios = truth_ratios(world, model, tokenizer, questions)
    truth = statistics.fmean(max(0.0, 1.0 - ratio) for ratio in ratios)
    parts = (scores.probability, scores.rouge_l_recall, truth)
    mean = statistics.harmonic_mean(parts) if min(parts) > 0 else 0.0
    return Utility(*parts, mean, len(questions))


def forget_quality(ours: Sequence[float], control: Sequence[float]) -> dict[str, float]:
    """Two-sided two-sample Kolmogorov-Smirnov test between truth ratios; a small p tells the two models apart."""
    found = ks_2samp(ours, control)
    p = float(found.pvalue)
    return {"p_value": p, "log10_p": math.log10(p) if p > 0 else -math.inf, "statistic": float(found.statistic)}
