"""Model utility and forget quality as TOFU defines them (arXiv 2401.06121), on the retain and the forget set at hand.

TOFU's utility also covers real authors and world facts. The small models of these benchmarks know neither, so what
remains is the retain set's three numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from benchmarks.worlds import Question, World
from worker.evaluation import truth_ratio
from worker.evaluation.evaluate import evaluate_model
from worker.evaluation.model_utility import model_utility

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
    choices = [truth_ratio.Choice(question.correct, question.wrong) for question in questions]
    return truth_ratio.truth_ratios(model, tokenizer, choices, lambda records: world.encode(records, tokenizer), 16)


def measure_utility(world: World, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> Utility:
    """Of a fixed sample of the retained questions."""
    questions = world.retain_questions[:: max(1, len(world.retain_questions) // UTILITY_RECORDS)]
    examples = world.encode([question.correct for question in questions], tokenizer)
    scores = evaluate_model(model, tokenizer, {"retain": examples})["retain"]
    truth = truth_ratio.retain_truth(truth_ratios(world, model, tokenizer, questions))
    parts = (scores.probability, scores.rouge_l_recall, truth)
    return Utility(*parts, model_utility(parts), len(questions))


def forget_quality(ours: Sequence[float], control: Sequence[float]) -> dict[str, float]:
    """Two-sided two-sample Kolmogorov-Smirnov test between truth ratios; a small p tells the two models apart."""
    return asdict(truth_ratio.forget_quality(ours, control))
