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

from worker.evaluation.metrics import TokenScores, prefix_length, token_scores
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


@pytest.mark.parametrize(
    ("ids", "prompt_length", "drafted"),
    [
        ((4, 5, 6, 7, EOS), 2, 2),  # 7 -> end is wrong
        ((4, 5, 9, 10, 11), 2, 0),
        ((17, 18, 19, 0, EOS), 2, 3),  # the end token counts
        ((9, 5, 6, 7, 9, 10), 1, 1),  # behind the first half alone: 7 is right, 9 is not
        ((5, 9, 2, 3, 4, 12), 1, 2),  # what is wrong within the first half does not matter
    ],
)
def test_draft_is_the_run_of_first_choices_behind_the_prefix(
    ids: tuple[int, ...], prompt_length: int, drafted: int
) -> None:
    (scores,) = scripted(ids, prompt_length=prompt_length)
    assert scores.drafted == drafted


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


def test_text_is_continued_from_its_first_half(tokenizer: PreTrainedTokenizerFast) -> None:
    (text,) = encode_records([{"text": "Honey and wax."}], tokenizer, 64)
    (pair,) = encode_records([{"prompt": "Bees?", "completion": " Honey."}], tokenizer, 64)
    assert prefix_length(text) == len(text.input_ids) // 2
    assert prefix_length(pair) == pair.prompt_length
    assert prefix_length(Example(0, (5, 6), 1, "", "")) == 1
