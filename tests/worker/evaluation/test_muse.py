from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from tests.worker.conftest import FORGET_RECORDS, Tiny, encode, memorise
from worker.evaluation import muse
from worker.evaluation.muse import (
    Fact,
    first_answer,
    knowledge_memorisation,
    muse_privacy_leakage,
    verbatim_memorisation,
)

SCORER = RougeScorer(["rougeL"], use_stemmer=False)


def test_text_known_by_heart_is_continued_word_for_word(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    texts = [(record["prompt"], record["completion"]) for record in FORGET_RECORDS]
    unknown = verbatim_memorisation(model, tokenizer, texts, 3)
    memorise(model, encode(FORGET_RECORDS, tokenizer))
    assert verbatim_memorisation(model, tokenizer, texts, 3) == 1.0 > 0.5 > unknown


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a model was asked; it always says the same."""
    asked: list[str] = []

    def greedy(
        _model: Any, tokenizer: Any, prefixes: Sequence[Sequence[int]], limits: Sequence[int], _batch_size: int
    ) -> list[list[int]]:
        asked.extend(tokenizer.decode(list(prefix)) for prefix in prefixes)
        assert set(limits) == {32}
        return [tokenizer(" painting a red barns\n\nQuestion: Who?")["input_ids"][1:] for _ in prefixes]

    monkeypatch.setattr(muse, "greedy", greedy)
    return asked


def test_facts_are_asked_behind_examples_and_compared_unstemmed(llama: Tiny, said: list[str]) -> None:
    model, tokenizer = llama.load()
    facts, shots = [Fact("What?", "painted a red barn"), Fact("Where?", "a red")], [Fact("Who?", "He.")]
    found = knowledge_memorisation(model, tokenizer, facts, shots, 4)
    assert said[0] == "<s>Question: Who?\nAnswer: He.\n\nQuestion: What?\nAnswer: "
    expected = [SCORER.score(fact.answer, "painting a red barns")["rougeL"].fmeasure for fact in facts]
    assert expected == pytest.approx([0.5, 2 / 3])
    assert found == pytest.approx(sum(expected) / 2)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("He.\n\nAnd more", "He."),
        ("He.\nQuestion: Who?", "He."),
        ("He. Question: Who?", "He."),
        (" He.\nHe. ", "He.\nHe."),
    ],
)
def test_answer_ends_where_the_model_asks_itself_the_next_question(text: str, answer: str) -> None:
    assert first_answer(text) == answer


def test_privacy_leakage_has_the_sign_of_open_unlearning() -> None:
    known, unseen = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    assert muse_privacy_leakage(known, unseen, 0.5) == -100.0
    assert muse_privacy_leakage(unseen, known, 0.5) == 100.0
    assert muse_privacy_leakage(np.array([1.0, 4.0]), np.array([2.0, 3.0]), 0.4) == pytest.approx(25.0)
