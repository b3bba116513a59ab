from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from tests.worker.conftest import CONTEXT, FORGET_RECORDS, RETAIN_RECORDS, Tiny, encode, memorise
from worker.evaluation import generation
from worker.evaluation.generation import ANSWER_MARGIN, greedy_answers
from worker.evaluation.metrics import prefix_length, token_scores
from worker.evaluation.rouge import rouge_l_recall
from worker.unlearning.encoding import Example, encode_records

EOS = 1


def step_by_step(model: Any, example: Example, limit: int) -> list[int]:
    """Greedy decoding without cache, padding or batch."""
    ids = list(example.input_ids[: prefix_length(example)])
    new: list[int] = []
    while len(new) < limit and (not new or new[-1] != EOS):
        with torch.no_grad():
            new.append(int(model(input_ids=torch.tensor([ids + new])).logits[0, -1].argmax()))
    return new[:-1] if new and new[-1] == EOS else new


def test_batched_answers_are_those_of_one_by_one_decoding(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    examples = encode(FORGET_RECORDS + RETAIN_RECORDS, tokenizer)
    answers = greedy_answers(model, tokenizer, examples, 8, 200)
    for example, answer in zip(examples, answers, strict=True):
        ids = step_by_step(model, example, len(example.labels) + ANSWER_MARGIN)
        assert answer.generated == str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
        assert answer.reference == example.answer.strip()


def test_memorised_answers_come_back_and_stop_at_the_end_token(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    examples = encode(FORGET_RECORDS + RETAIN_RECORDS, tokenizer)
    memorise(model, examples)
    answers = greedy_answers(model, tokenizer, examples, 3, 128)
    assert [answer.generated for answer in answers] == [example.answer.strip() for example in examples]
    assert [rouge_l_recall(answer) for answer in answers] == [1.0] * 8


def test_repetition_penalty_of_the_base_does_not_reach_greedy_decoding(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    examples = encode(FORGET_RECORDS, tokenizer)
    plain = greedy_answers(model, tokenizer, examples, 4, 32)
    shipped = model.get_base_model().generation_config
    shipped.repetition_penalty = 50.0
    shipped.suppress_tokens = list(range(3, 300))
    assert greedy_answers(model, tokenizer, examples, 4, 32) == plain
    assert model.get_base_model().generation_config is shipped


def test_answers_do_not_depend_on_the_batch(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    examples = encode(FORGET_RECORDS + RETAIN_RECORDS, tokenizer)
    alone = greedy_answers(model, tokenizer, examples, 1, 200)
    assert greedy_answers(model, tokenizer, examples, 3, 200) == alone


def test_generation_stays_within_the_context(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    long_prompt = Example(0, tuple(range(10, 10 + CONTEXT)), CONTEXT - 2, "", "")
    long_answer = Example(1, tuple(range(100, 100 + CONTEXT)), 5, "", "")
    widths: list[int] = []  # tokens held after each forward pass: a prefix, then one more each

    def watch(_module: nn.Module, _arguments: object, inputs: dict[str, Any]) -> None:
        new = int(inputs["input_ids"].shape[1])
        widths.append(new if new > 1 else widths[-1] + 1)

    model.get_base_model().register_forward_pre_hook(watch, with_kwargs=True)
    answers = greedy_answers(model, tokenizer, [long_prompt, long_answer], 8, 128)
    assert max(widths) <= CONTEXT
    assert all(answer.reference for answer in answers)


def test_reference_is_cut_where_generation_is(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    (example,) = encode([FORGET_RECORDS[0]], tokenizer)
    (answer,) = greedy_answers(model, tokenizer, [example], 1, 2)
    assert answer.reference == str(tokenizer.decode(list(example.labels[:2]))).strip()


def shapes(tokenizer: Any) -> list[Example]:
    """Prompts with answers, one that ends within its answer, one without an end token, plain text, windows."""
    pairs = encode(FORGET_RECORDS + RETAIN_RECORDS, tokenizer)
    ids = pairs[0].input_ids
    ends_within = Example(8, (*ids, *ids[-3:]), pairs[0].prompt_length, "", "")
    endless = Example(9, pairs[1].input_ids[:-1], pairs[1].prompt_length, "", "")
    texts = encode_records([{"text": " ".join(record.values())} for record in FORGET_RECORDS], tokenizer, 17)
    return [*pairs, ends_within, endless, *texts]


@pytest.mark.parametrize("steps", [0, 8, 60], ids=["knows nothing", "knows half", "knows all"])
@pytest.mark.parametrize("cut", [1, 4, 128])
def test_drafted_answers_are_those_of_plain_greedy_decoding(llama: Tiny, steps: int, cut: int) -> None:
    model, tokenizer = llama.load()
    examples = shapes(tokenizer)
    memorise(model, examples, steps=steps)
    drafts = [score.drafted for score in token_scores(model, tokenizer, examples, 8)]
    if steps == 8:
        answers = [len(example.input_ids) - prefix_length(example) for example in examples]
        assert any(0 < draft < answer for draft, answer in zip(drafts, answers, strict=True))
    plain = greedy_answers(model, tokenizer, examples, 5, cut)
    assert greedy_answers(model, tokenizer, examples, 8, cut, drafts) == plain


def test_what_is_known_to_the_end_is_not_generated(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = llama.load()
    examples = encode(FORGET_RECORDS + RETAIN_RECORDS, tokenizer)
    known, unknown = examples[:4], examples[4:]
    memorise(model, known)
    drafts = [score.drafted for score in token_scores(model, tokenizer, examples, 8)]
    asked: list[Sequence[int]] = []
    real = generation.generate

    def watched(model: Any, tokenizer: Any, prefixes: Sequence[Sequence[int]], limit: int) -> Any:
        asked.extend(prefixes)
        return real(model, tokenizer, prefixes, limit)

    monkeypatch.setattr(generation, "generate", watched)
    answers = greedy_answers(model, tokenizer, examples, 8, 128, drafts)
    assert [answer.generated for answer in answers[:4]] == [example.answer.strip() for example in known]
    starts = [example.input_ids[: example.prompt_length] for example in unknown]
    assert 0 < len(asked) <= 4
    assert all(any(tuple(prefix[: len(start)]) == start for start in starts) for prefix in asked)
