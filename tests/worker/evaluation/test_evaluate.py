from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, encode, memorise
from worker.evaluation.evaluate import SetScores, base_scores, evaluate_model, sample_examples
from worker.evaluation.generation import greedy_answers
from worker.evaluation.metrics import token_scores
from worker.unlearning.encoding import Example, encode_records
from worker.unlearning.models import load_base

METRICS = ("probability", "nll", "extraction_strength", "exact_memorisation", "rouge_l_recall")


def means(scores: SetScores) -> list[float]:
    return [getattr(scores, name) for name in METRICS]


def plain_nll(model: Any, example: Example) -> float:
    """Mean label NLL by the model's own forward, alone and without padding."""
    ids = torch.tensor([example.input_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, example.prompt_length - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, ids[0, example.prompt_length :]))


def test_memorised_set_scores_high_and_the_base_alone_low(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    sets = {"forget": encode(FORGET_RECORDS, tokenizer)}
    memorise(model, sets["forget"])
    known = evaluate_model(model, tokenizer, sets)["forget"]
    base = base_scores(model, tokenizer, sets)["forget"]
    assert (known.records, known.extraction_strength, known.rouge_l_recall) == (4, 1.0, 1.0)
    assert known.probability > 0.5 > 0.05 > base.probability
    assert base.extraction_strength < 0.3


def test_base_scores_are_those_of_the_base_and_leave_the_adapter_trainable(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    sets = {"retain": encode(RETAIN_RECORDS, tokenizer)}
    with_adapter = evaluate_model(model, tokenizer, sets)
    base, _ = load_base(llama.base)
    expected = evaluate_model(base, tokenizer, sets)["retain"]
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert means(base_scores(model, tokenizer, sets)["retain"]) == pytest.approx(means(expected), rel=1e-5)
    assert evaluate_model(model, tokenizer, sets) == with_adapter
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable


def test_probability_is_the_exponential_of_the_mean_nll_per_record(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    examples = encode(FORGET_RECORDS, tokenizer)
    scores = evaluate_model(model, tokenizer, {"forget": examples})["forget"]
    nll = [plain_nll(model, example) for example in examples]
    assert [record.nll for record in scores.per_record] == pytest.approx(nll, rel=1e-5)
    assert scores.nll == pytest.approx(sum(nll) / 4, rel=1e-5)
    assert scores.probability == pytest.approx(sum(math.exp(-value) for value in nll) / 4, rel=1e-5)


def test_batch_size_does_not_change_the_scores(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    sets = {"forget": encode(FORGET_RECORDS, tokenizer), "retain": encode(RETAIN_RECORDS, tokenizer)}
    one = evaluate_model(model, tokenizer, sets, batch_size=1)
    many = evaluate_model(model, tokenizer, sets, batch_size=5)
    for name in sets:
        assert means(many[name]) == pytest.approx(means(one[name]), rel=1e-4)


def test_a_set_scores_as_it_does_alone_whatever_else_is_asked(tiny: Tiny) -> None:
    """Answers of all sets are written together: each has to come back to the set and the record that it is of."""
    model, tokenizer = tiny.load()
    sets = {"forget": encode(FORGET_RECORDS, tokenizer), "none": [], "retain": encode(RETAIN_RECORDS, tokenizer)}
    memorise(model, sets["forget"][:2], steps=20)
    together = evaluate_model(model, tokenizer, sets)
    for name, examples in sets.items():
        alone = evaluate_model(model, tokenizer, {name: examples})[name]
        assert means(together[name]) == pytest.approx(means(alone), rel=1e-5)
        recalls = [record.rouge_l_recall for record in alone.per_record]
        assert [record.rouge_l_recall for record in together[name].per_record] == pytest.approx(recalls)
    assert len({record.rouge_l_recall for record in together["forget"].per_record}) > 1


@pytest.mark.parametrize(
    ("part", "tried"), [("token_scores", [12, 6, 3, 1]), ("greedy_answers", [48, 24, 12, 6, 3, 1])]
)
def test_batches_that_do_not_fit_are_halved(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch, part: str, tried: list[int]
) -> None:
    model, tokenizer = llama.load()
    sets = {"forget": encode(FORGET_RECORDS, tokenizer)}
    expected = evaluate_model(model, tokenizer, sets, batch_size=1)["forget"]
    sizes: list[int] = []
    real: Any = {"token_scores": token_scores, "greedy_answers": greedy_answers}[part]

    def scarce(model: Any, tokenizer: Any, examples: list[Example], batch_size: int, *more: Any) -> Any:
        sizes.append(batch_size)
        if batch_size > 2:
            raise torch.OutOfMemoryError
        return real(model, tokenizer, examples, batch_size, *more)

    monkeypatch.setattr(f"worker.evaluation.evaluate.{part}", scarce)
    scores = evaluate_model(model, tokenizer, sets, batch_size=12)["forget"]
    assert sizes == tried
    # Not to the last bit: on some processors a batch of another size is rounded otherwise.
    assert means(scores) == pytest.approx(means(expected), rel=1e-4)


def test_other_errors_of_a_pass_are_not_taken_for_a_lack_of_memory(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = llama.load()

    def fail(*_arguments: object) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr("worker.evaluation.evaluate.token_scores", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        evaluate_model(model, tokenizer, {"forget": encode(FORGET_RECORDS, tokenizer)})


def test_windows_are_joined_into_one_record(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    records = [{"text": " ".join(record.values())} for record in FORGET_RECORDS]
    windows = encode_records(records, tokenizer, 8)
    scores = evaluate_model(model, tokenizer, {"forget": windows})["forget"]
    parts = token_scores(model, tokenizer, windows, 4)
    assert scores.records == 4 < len(windows)
    for record in scores.per_record:
        mine = [part for window, part in zip(windows, parts, strict=True) if window.record == record.record]
        labels = sum(part.labels for part in mine)
        assert record.nll == pytest.approx(sum(part.nll_sum for part in mine) / labels, rel=1e-5)
        tokens = sum(part.answer_tokens for part in mine)
        assert tokens == labels - 1
        assert record.exact_memorisation == pytest.approx(sum(part.matches for part in mine) / tokens)


def test_records_without_an_answer_are_skipped_and_counted(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    records = [{"prompt": "Empty?", "completion": ""}, *FORGET_RECORDS]
    examples = [*encode(records, tokenizer), Example(5, (4,), 1, "", "")]
    scores = evaluate_model(model, tokenizer, {"forget": examples})["forget"]
    alone = evaluate_model(model, tokenizer, {"forget": encode(FORGET_RECORDS, tokenizer)})["forget"]
    assert (scores.records, scores.skipped) == (4, 2)
    assert means(scores) == pytest.approx(means(alone), rel=1e-5)


def test_empty_set_has_no_nan(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    scores = evaluate_model(model, tokenizer, {"forget": []})["forget"]
    assert (scores.records, scores.skipped, means(scores)) == (0, 0, [0.0] * 5)


def test_evaluation_switches_dropout_off_and_leaves_the_mode_and_weights(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    sets = {"forget": encode(FORGET_RECORDS, tokenizer)}
    expected = evaluate_model(model, tokenizer, sets)
    before: dict[str, Any] = {name: p.clone() for name, p in model.named_parameters()}
    model.train()
    assert evaluate_model(model, tokenizer, sets) == expected
    assert model.training
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def windows_of(counts: list[int]) -> list[Example]:
    return [Example(record, (1, 2), 1, "", "") for record, count in enumerate(counts) for _ in range(count)]


@given(counts=st.lists(st.integers(1, 3), max_size=20), limit=st.integers(1, 25), seed=st.integers(0, 2**31))
def test_sample_takes_whole_records_in_order_and_repeats(counts: list[int], limit: int, seed: int) -> None:
    examples = windows_of(counts)
    sample = sample_examples(examples, limit, seed)
    drawn = [example.record for example in sample]
    assert len(set(drawn)) == min(limit, len(counts))
    assert drawn == sorted(drawn)
    assert len(sample) == sum(counts[record] for record in set(drawn))
    assert sample_examples(examples, limit, seed) == sample


def test_another_seed_draws_another_sample() -> None:
    examples = windows_of([1] * 50)
    assert sample_examples(examples, 10, 0) != sample_examples(examples, 10, 1)
