from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from worker.evaluation.rouge import Answer, common_subsequence, rouge_l, rouge_l_recall

WORDS = ["barn", "painted", "painting", "lives", "the", "red", "1974", "geese", "Geese,"]


@pytest.mark.parametrize(
    ("reference", "generated", "recall"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat down", "the dog sat", 0.5),
        ("the cat sat", "and so the very big cat then sat", 1.0),  # recall ignores what else is said
        ("a b c d", "d c b a", 0.25),  # order counts
        ("He painted barns", "he PAINTING barn!", 1.0),  # stemmed, case and punctuation ignored
        ("the cat", "", 0.0),
        ("", "the cat", 0.0),
        ("...", "...", 0.0),
        ("Москва река", "москва", 0.5),  # scripts that rouge-score cannot see
        ("東京都", "東京", 2 / 3),
    ],
)
def test_rouge_l_recall(reference: str, generated: str, recall: float) -> None:
    assert rouge_l_recall(Answer(reference, generated)) == pytest.approx(recall)


@pytest.mark.parametrize("stemmed", [True, False])
def test_rouge_l_is_that_of_rouge_score(stemmed: bool) -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=stemmed)
    drawn = np.random.default_rng(0)
    for _ in range(200):
        reference, generated = (" ".join(drawn.choice(WORDS, drawn.integers(13))) for _ in range(2))
        expected = scorer.score(reference, generated)["rougeL"]
        found = rouge_l(Answer(reference, generated), stemmed=stemmed)
        values = (found.recall, found.precision, found.f1)
        assert values == pytest.approx((expected.recall, expected.precision, expected.fmeasure))


@given(a=st.lists(st.sampled_from("abc"), max_size=9), b=st.lists(st.sampled_from("abcd"), max_size=9))
def test_common_subsequence_is_that_of_the_table(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, left in enumerate(a):
        for j, right in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    assert common_subsequence(a, b) == table[-1][-1]


def test_answers_of_hundreds_of_words_are_compared_whole() -> None:
    words = [f"word{i}" for i in range(300)]
    assert common_subsequence(words, [*words[:100], "x", *words[150:]]) == 250
