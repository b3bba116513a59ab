from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPast

from tests.worker.conftest import CONTEXT, FORGET_RECORDS, RETAIN_RECORDS, Tiny, encode, memorise
from worker.evaluation.metrics import (
    ANSWER_MARGIN,
    Answer,
    TokenScores,
    greedy_answers,
    prefix_length,
    rouge_l_recall,
    token_scores,
)
from worker.unlearning.encoding import Example, encode_records

EOS = 1


VOCABULARY = 20


class Script(nn.Module):
    """Log-probabilities in the place of hidden states: 3/4 for t + 1 after token t, the rest is shared."""

    def forward(self, input_ids: Tensor, **_unused: object) -> BaseModelOutputWithPast:
        probabilities = torch.full((*input_ids.shape, VOCABULARY), 0.25 / (VOCABULARY - 1))
        probabilities.scatter_(-1, (input_ids[..., None] + 1) % VOCABULARY, 0.75)
        return BaseModelOutputWithPast(last_hidden_state=probabilities.log())


class Scripted(nn.Module):
    """A model that follows the script."""

    base_model_prefix = "model"
    config = LlamaConfig(vocab_size=VOCABULARY)

    def __init__(self) -> None:
        super().__init__()
        self.model, self.head = Script(), nn.Identity()
        self.weight = nn.Parameter(torch.zeros(1))

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, **inputs: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.model(**inputs)[0]))


def scripted(*sequences: Sequence[int], prompt_length: int = 1) -> list[TokenScores]:
    examples = [Example(i, tuple(ids), prompt_length, "", "") for i, ids in enumerate(sequences)]
    tokenizer: Any = SimpleNamespace(pad_token_id=0, eos_token_id=EOS)
    return token_scores(Scripted(), tokenizer, examples, batch_size=2)


def test_nll_counts_the_end_token_and_the_answer_does_not() -> None:
    # 5 -> 6 and 6 -> 7 are the model's choice, 7 -> end is not.
    (scores,) = scripted((5, 6, 7, EOS))
    wrong = -math.log(0.25 / 19)
    assert scores.nll_sum == pytest.approx(2 * -math.log(0.75) + wrong, rel=1e-5)
    assert (scores.labels, scores.answer_tokens, scores.matches, scores.matching_suffix) == (3, 2, 2, 2)


@pytest.mark.parametrize(
    ("ids", "matches", "suffix"),
    [
        ((5, 6, 7, 8), 3, 3),
        ((5, 9, 10, 11), 2, 2),  # wrong, right, right
        ((5, 6, 9, 10), 2, 1),  # right, wrong, right
        ((5, 6, 7, 9), 2, 0),  # right, right, wrong: nothing is extracted
        ((5, 9, 12, 3), 0, 0),
    ],
)
def test_extraction_needs_a_matching_suffix_and_memorisation_any_match(
    ids: tuple[int, ...], matches: int, suffix: int
) -> None:
    (scores,) = scripted(ids)
    assert (scores.matches, scores.matching_suffix, scores.answer_tokens) == (matches, suffix, 3)


def test_prompt_tokens_are_not_scored() -> None:
    (scores,) = scripted((5, 6, 3, 4), prompt_length=3)
    assert (scores.labels, scores.matches) == (1, 1)


def test_only_a_final_end_token_is_left_out_of_the_answer() -> None:
    (scores,) = scripted((0, EOS, 2, EOS))
    assert (scores.answer_tokens, scores.matches) == (2, 2)


def test_sequence_without_labels_scores_nothing_and_disturbs_no_other() -> None:
    empty, full, end_only = scripted((5,), (5, 6, 7), (5, EOS))
    assert empty == TokenScores(0.0, 0, 0, 0, 0)
    assert (full.labels, full.matches) == (2, 2)
    assert (end_only.labels, end_only.answer_tokens) == (1, 0)


@settings(deadline=None, max_examples=40)
@given(sequences=st.lists(st.lists(st.integers(2, 19), min_size=1, max_size=8), min_size=1, max_size=7))
def test_scores_come_in_the_order_of_the_examples_whatever_their_lengths(sequences: list[list[int]]) -> None:
    together = scripted(*sequences)
    for ids, scores in zip(sequences, together, strict=True):
        (alone,) = scripted(ids)
        assert scores.nll_sum == pytest.approx(alone.nll_sum, rel=1e-5)
        assert (scores.labels, scores.matches, scores.matching_suffix) == (
            alone.labels,
            alone.matches,
            alone.matching_suffix,
        )


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


def test_text_is_continued_from_its_first_half(tokenizer: PreTrainedTokenizerFast) -> None:
    (text,) = encode_records([{"text": "Honey and wax."}], tokenizer, 64)
    (pair,) = encode_records([{"prompt": "Bees?", "completion": " Honey."}], tokenizer, 64)
    assert prefix_length(text) == len(text.input_ids) // 2
    assert prefix_length(pair) == pair.prompt_length
    assert prefix_length(Example(0, (5, 6), 1, "", "")) == 1


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
