"""A quick look gives the same two numbers as the whole evaluation."""

from __future__ import annotations

import pytest

from tests.worker.conftest import FORGET_RECORDS, Tiny, memorise
from worker.evaluation.evaluate import evaluate_model
from worker.evaluation.quick import Shown, shown
from worker.unlearning.encoding import encode_records


@pytest.mark.parametrize("max_length", [96, 12])
def test_agrees_with_the_evaluation_on_whole_and_on_cut_records(llama: Tiny, max_length: int) -> None:
    model, tokenizer = llama.load()
    records = [*FORGET_RECORDS, {"prompt": "Nothing?", "completion": ""}]
    examples = encode_records(records, tokenizer, max_length)
    memorise(model, examples, steps=15)
    whole = evaluate_model(model, tokenizer, {"set": examples}, batch_size=3)["set"]
    found = shown(model, tokenizer, examples, 3)
    assert found.records == whole.records == len(FORGET_RECORDS)
    assert found.probability == pytest.approx(whole.probability)
    assert found.extraction_strength == pytest.approx(whole.extraction_strength)
    assert 0 < found.extraction_strength < 1


def test_nothing_to_score_shows_nothing(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    assert shown(model, tokenizer, [], 4) == Shown(0.0, 0.0, 0)
