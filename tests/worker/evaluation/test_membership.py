from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, encode, memorise
from worker.evaluation import membership
from worker.evaluation.membership import (
    SCORES,
    Bootstrap,
    Floats,
    Interval,
    auc,
    direction,
    distance,
    mean_interval,
    membership_scores,
    privacy_leakage,
)
from worker.unlearning.encoding import Example, encode_records
from worker.unlearning.scoring import CHUNK_ELEMENTS


def by_the_formulas(model: Any, example: Example, *, ended: bool) -> dict[str, float]:
    """Every score of one sequence in float64, token by token, as open-unlearning defines it."""
    ids = torch.tensor([example.input_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, example.prompt_length - 1 : -1].double()
    log_p = logits.log_softmax(-1)
    mine = [float(row[label]) for row, label in zip(log_p, example.labels, strict=True)]
    standardised = []
    for row, value in zip(log_p, mine, strict=True):
        mu = float((row.exp() * row).sum())
        variance = float((row.exp() * row**2).sum()) - mu**2
        standardised.append((value - mu) / math.sqrt(max(variance, 1e-6)))
    n = len(mine) - ended
    m = max(1, math.floor(0.4 * n))
    return {
        "loss": -sum(mine) / len(mine),
        "zlib": -sum(mine) / len(mine) / len(zlib.compress(example.answer.encode())),
        "min_k": -sum(sorted(mine[:n])[:m]) / m,
        "min_k_plus_plus": -sum(sorted(standardised[:n])[:m]) / m,
    }


def test_scores_are_those_of_the_formulas(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    examples = encode(FORGET_RECORDS + RETAIN_RECORDS, tokenizer)
    memorise(model, examples[:4])  # sure of some tokens, and of others not at all
    found = membership_scores(model, tokenizer, examples, 3)
    for i, example in enumerate(examples):
        for name, value in by_the_formulas(model, example, ended=True).items():
            assert found[name][i] == pytest.approx(value, rel=2e-3), (name, i)  # type: ignore[index]


@pytest.mark.parametrize("answer", [" I", ""])
def test_short_answer_has_one_lowest_token_and_an_empty_one_no_score(llama: Tiny, answer: str) -> None:
    model, tokenizer = llama.load()
    examples = encode([{"prompt": "Who?", "completion": answer}], tokenizer)
    found = membership_scores(model, tokenizer, examples, 1)
    assert [len(found[name]) for name in SCORES] == [1 if answer else 0] * 4
    assert all(np.isfinite(values).all() for values in found.values())


def test_windows_are_joined_into_one_record(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    windows = encode_records([{"text": "Honey and wax, and a lighthouse near Brest."}], tokenizer, 8)
    assert len(windows) > 1
    parts = [by_the_formulas(model, window, ended=False) for window in windows]
    labels = [len(window.labels) for window in windows]
    found = membership_scores(model, tokenizer, windows, 4)
    expected = sum(part["loss"] * count for part, count in zip(parts, labels, strict=True)) / sum(labels)
    assert found["loss"].tolist() == pytest.approx([expected], rel=1e-4)
    assert len(found["min_k"]) == 1


def test_vocabulary_in_chunks_gives_the_same_scores(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = llama.load()
    examples = encode(FORGET_RECORDS, tokenizer)
    whole = membership_scores(model, tokenizer, examples, 4)
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 3 * 2 * 384)  # three labels at once
    for name, values in membership_scores(model, tokenizer, examples, 4).items():
        assert values == pytest.approx(whole[name], rel=1e-5)


def test_impossible_words_of_the_vocabulary_leave_the_scores_finite() -> None:
    logits = torch.tensor([[0.0, 1.0, -math.inf], [0.0, 1.0, 2.0]])
    both = membership._standardised(logits, torch.tensor([1, 2]))
    alone = membership._standardised(logits[:1, :2], torch.tensor([1]))
    assert bool(both.isfinite().all())
    assert torch.allclose(both[0], alone[0])


def test_variance_of_an_indifferent_model_is_not_lost_to_rounding() -> None:
    logits = 0.003 * torch.randn(1, 4096, generator=torch.Generator().manual_seed(0))
    log_p = logits.double().log_softmax(-1)
    mu = (log_p.exp() * log_p).sum()
    expected = (log_p[0, 1] - mu) / (log_p.exp() * (log_p - mu) ** 2).sum().sqrt()
    assert float(membership._standardised(logits, torch.tensor([1]))[0, 1]) == pytest.approx(
        float(expected), rel=1e-2
    )


scores = st.lists(st.integers(0, 5).map(float), min_size=1, max_size=12).map(np.array)


@given(members=scores, others=scores)
def test_auc_is_that_of_scikit_learn(members: Floats, others: Floats) -> None:
    # Its positives are those with the higher scores: the non-members.
    truth = [0] * len(members) + [1] * len(others)
    assert auc(members, others) == pytest.approx(roc_auc_score(truth, np.concatenate([members, others])))


def test_auc_is_one_where_every_member_has_the_lower_score() -> None:
    assert auc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 1
    assert auc(np.array([3.0, 2.0]), np.array([2.0, 1.0])) == 0.125


def test_interval_is_that_of_plain_resampling() -> None:
    random = np.random.default_rng(0)
    members, others = random.normal(0, 1, 40), random.normal(0.7, 1, 60)
    draws = [auc(random.choice(members, 40), random.choice(others, 60)) for _ in range(4000)]
    found = Bootstrap(40, 60, 1).auc(members, others)
    assert found.value == auc(members, others)
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=0.02)


def test_difference_is_resampled_in_pairs() -> None:
    random = np.random.default_rng(0)
    members, others = random.normal(0, 1, 40), random.normal(0.7, 1, 60)
    bootstrap = Bootstrap(40, 60, 1)
    same = bootstrap.difference((members, others), (members, others))
    assert same == Interval(0, 0, 0)
    near = bootstrap.difference((members + 0.1, others), (members, others))
    single = bootstrap.auc(members, others)
    assert near.value < 0
    assert near.high - near.low < (single.high - single.low) / 3


def test_intervals_repeat_by_the_seed() -> None:
    members, others = np.arange(20.0), np.arange(10.0, 30.0)
    first, second, third = (Bootstrap(20, 20, seed).auc(members, others) for seed in (1, 1, 2))
    assert first == second != third


def test_mean_interval_is_that_of_plain_resampling() -> None:
    values = [0.0] * 30 + [1.0] * 10
    found = mean_interval(values, 3)
    half = 1.96 * math.sqrt(0.25 * 0.75 / 40)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.25 - half, 0.25 + half), abs=0.03)


@pytest.mark.parametrize(
    ("difference", "apart", "words"),
    [
        (Interval(0.3, 0.1, 0.4), Interval(0.3, 0.1, 0.4), "too well known"),
        (Interval(-0.3, -0.4, -0.1), Interval(0.3, 0.1, 0.4), "too little known"),
        (Interval(-0.1, -0.3, 0.2), Interval(0.1, 0.0, 0.3), "no difference"),
        (Interval(0.0, 0.0, 0.0), Interval(0.0, 0.0, 0.0), "no difference"),
    ],
)
def test_distance_and_direction(difference: Interval, apart: Interval, words: str) -> None:
    assert (distance(difference), direction(difference)) == (apart, words)


@pytest.mark.parametrize(
    ("ours", "retrained", "leakage"),
    [(1.0, 0.5, -100.0), (0.0, 0.5, 100.0), (0.5, 0.5, 0.0), (0.9, 0.6, -75.0), (0.5, 1.0, None)],
)
def test_privacy_leakage_is_negative_where_records_are_still_known(
    ours: float, retrained: float, leakage: float | None
) -> None:
    found = privacy_leakage(ours, retrained)
    assert found is None if leakage is None else found == pytest.approx(leakage)
