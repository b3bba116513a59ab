"""Model utility of TOFU (arXiv 2401.06121): one number for everything that was to be kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence


def normalised_probability(correct_nll: float, wrong_nlls: Sequence[float]) -> float:
    """P(correct) over P(correct) plus the sum of P(wrong), each length-normalised: TOFU's probability of a fact.

    Args:
        correct_nll: of the true answer, nats per token.
        wrong_nlls: of the wrong ones.
    """
    correct = math.exp(-correct_nll)
    return correct / (correct + math.fsum(math.exp(-nll) for nll in wrong_nlls) + 1e-10)


def model_utility(parts: Sequence[float]) -> float:
    """Harmonic mean, 0 where one of the parts is 0.

    TOFU's parts are probability, ROUGE-L recall and the mean of max(0, 1 - truth ratio), each on retained records, on
    real authors and on world facts: nine numbers in [0, 1].
    """
    return statistics.harmonic_mean(parts) if parts else 0.0
