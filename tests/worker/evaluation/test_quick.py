"""A quick look gives the same two numbers as the whole evaluation."""

from __future__ import annotations

import pytest

from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, encode, memorise
from worker.evaluation.evaluate import evaluate_model
from worker.evaluation.quick import Shown, all_shown, shown
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
    of_whole = Shown.of(whole)
    assert (of_whole.probability, of_whole.extraction_strength) == (found.probability, found.extraction_strength)


def test_sets_in_one_pass_show_what_each_does_alone(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    sets = {"one": encode(FORGET_RECORDS, tokenizer), "none": [], "other": encode(RETAIN_RECORDS, tokenizer)}
    memorise(model, sets["one"], steps=15)
    found = all_shown(model, tokenizer, sets, 32)
    assert found["one"].probability > 2 * found["other"].probability
    for name, examples in sets.items():
        alone = shown(model, tokenizer, examples, 2)
        assert found[name].records == alone.records
        assert found[name].probability == pytest.approx(alone.probability, rel=1e-4)
        assert found[name].extraction_strength == pytest.approx(alone.extraction_strength)


def test_nothing_to_score_shows_nothing(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    assert shown(model, tokenizer, [], 4) == Shown(0.0, 0.0, 0)
