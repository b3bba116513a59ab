from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test

from tests.worker.conftest import CONTEXT, Tiny
from worker.evaluation.model_utility import model_utility, normalised_probability
from worker.evaluation.truth_ratio import (
    Choice,
    choice,
    forget_quality,
    forget_truth,
    retain_truth,
    truth_ratio,
    truth_ratios,
)
from worker.unlearning.encoding import encode_records

PAIR = {"prompt": "Who?", "completion": " He.", "paraphrase": " Him.", "perturbed": [" She.", " They."]}


def test_truth_ratio_is_the_geometric_mean_of_wrong_over_true() -> None:
    # Length-normalised probabilities 1/2 for the true answer, 1/4 and 1/16 for the wrong ones.
    assert truth_ratio(math.log(2), [math.log(4), math.log(16)]) == pytest.approx(1 / 8 / 0.5)
    assert math.isfinite(truth_ratio(2000.0, [1.0]))


@pytest.mark.parametrize("max_length", [CONTEXT, 8], ids=["whole", "windows"])
def test_truth_ratios_are_those_of_single_forward_passes(llama: Tiny, max_length: int) -> None:
    model, tokenizer = llama.load()
    answers = {"Who?": [" He.", " She and they."], "Why?": [" Geese, and the dark.", " No.", " Because of the sea."]}
    choices = []
    for prompt, texts in answers.items():
        correct, *wrong = [{"prompt": prompt, "completion": text} for text in texts]
        choices.append(Choice(correct, tuple(wrong)))
    found = truth_ratios(model, tokenizer, choices, lambda records: encode_records(records, tokenizer, max_length), 3)

    def nll(prompt: str, answer: str) -> float:
        total, labels = 0.0, 0
        for example in encode_records([{"prompt": prompt, "completion": answer}], tokenizer, max_length):
            ids = torch.tensor([example.input_ids])
            with torch.no_grad():
                logits: Any = model(input_ids=ids).logits[0, example.prompt_length - 1 : -1]
            wanted = ids[0, example.prompt_length :]
            total += float(torch.nn.functional.cross_entropy(logits, wanted, reduction="sum"))
            labels += len(wanted)
        return total / labels

    expected = []
    for prompt, texts in answers.items():
        true, *others = [nll(prompt, text) for text in texts]
        expected.append(math.exp(-sum(others) / len(others)) / math.exp(-true))
    assert found == pytest.approx(expected, rel=1e-4)


def test_record_brings_its_paraphrase_and_wrong_answers() -> None:
    found = choice(PAIR)
    assert found is not None
    assert found.correct["completion"] == " Him."
    assert [record["completion"] for record in found.wrong] == [" She.", " They."]
    unphrased = choice({key: value for key, value in PAIR.items() if key != "paraphrase"})
    assert unphrased is not None
    assert unphrased.correct["completion"] == " He."


def test_chat_has_its_last_answer_replaced() -> None:
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Who?"), ("assistant", "He.")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns], "perturbed": ["She."]}
    found = choice(record)
    assert found is not None
    assert [turn["content"] for turn in found.wrong[0]["messages"]] == ["Hi", "Hello.", "Who?", "She."]
    assert found.correct == record


@pytest.mark.parametrize("record", [{"prompt": "Who?", "completion": " He."}, {"text": "He.", "perturbed": ["She."]}])
def test_record_without_wrong_answers_has_no_choice(record: dict[str, Any]) -> None:
    assert choice(record) is None


def test_aggregates() -> None:
    assert forget_truth([0.5, 2.0, 1.0, 0.0]) == pytest.approx((0.5 + 0.5 + 1 + 0) / 4)
    assert retain_truth([0.5, 2.0, 0.0]) == pytest.approx((0.5 + 0 + 1) / 3)


def test_forget_quality_is_that_of_a_permutation_test() -> None:
    random = np.random.default_rng(0)
    ours, control = random.normal(0, 1, 7), random.normal(1, 1, 6)

    def statistic(x: Any, y: Any) -> float:
        both = np.concatenate([x, y])
        shares = [np.searchsorted(np.sort(part), both, side="right") / len(part) for part in (x, y)]
        return float(np.abs(shares[0] - shares[1]).max())

    exact = permutation_test((ours, control), statistic, n_resamples=2000, alternative="greater", vectorized=False)
    found = forget_quality(ours.tolist(), control.tolist())
    assert found.statistic == pytest.approx(statistic(ours, control))
    assert found.p_value == pytest.approx(float(exact.pvalue))
    assert found.log10_p == pytest.approx(math.log10(found.p_value))


@pytest.mark.parametrize(("n", "log10_p"), [(40, -22.73), (200, -118.71), (400, -238.97), (2000, -1202.0)])
def test_full_separation_has_the_smallest_p_however_small(n: int, log10_p: float) -> None:
    # 2 / C(2n, n). Blurred to 0 by floating point for thousands of records, its logarithm stays.
    found = forget_quality([0.0] * n, [1.0] * n)
    assert found.log10_p == pytest.approx(log10_p, rel=1e-2)
    assert forget_quality([0.1, 0.2, 0.3], [0.1, 0.2, 0.3]).p_value == 1.0


def test_model_utility_is_the_harmonic_mean_and_zero_where_one_part_is() -> None:
    assert model_utility([0.5, 1.0, 0.25]) == pytest.approx(3 / (2 + 1 + 4))
    assert model_utility([0.9, 0.0, 0.9]) == 0.0
    assert model_utility([]) == 0.0


def test_normalised_probability_is_a_share() -> None:
    assert normalised_probability(math.log(2), [math.log(4), math.log(4)]) == pytest.approx(0.5)
    assert normalised_probability(2000.0, [2000.0]) == 0.0
