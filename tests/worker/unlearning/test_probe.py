from __future__ import annotations

import math

import pytest
import torch

from tests.worker.conftest import Tiny
from tests.worker.unlearning.engine import PAD, nll_of, plain_outputs, sets, source
from worker.unlearning.encoding import Example
from worker.unlearning.probe import look, sample

EOS = 1


def strength_by_hand(right: list[bool]) -> float:
    """Share of the longest run of right first choices at the end."""
    run = 0
    for hit in reversed(right):
        if not hit:
            break
        run += 1
    return run / len(right)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_look_is_the_mean_over_sequences(memorised: Tiny, batch_size: int) -> None:
    model, tokenizer = source(memorised)
    # Four answers by heart, and one that belongs to another prompt.
    forget, retain = sets(tokenizer)
    prompt = forget[0].input_ids[: forget[0].prompt_length]
    stranger = Example(0, prompt + retain[1].labels, len(prompt), "", "")
    examples = [*forget, stranger]
    probabilities, strengths = [], []
    for example in examples:
        logits = plain_outputs(model, [example])[0].detach()
        labels = torch.tensor(example.labels)
        probabilities.append(math.exp(-float(nll_of(logits, labels).mean())))
        assert example.labels[-1] == EOS
        strengths.append(strength_by_hand((logits.argmax(-1) == labels).tolist()[:-1]))
    shown = look(model, examples, PAD, EOS, batch_size)
    assert shown.probability == pytest.approx(sum(probabilities) / 5, rel=1e-4)
    assert shown.extraction_strength == pytest.approx(sum(strengths) / 5)
    assert shown.sequences == 5
    assert 0.5 < shown.extraction_strength < 1.0


def test_end_token_alone_shows_nothing(memorised: Tiny) -> None:
    model, tokenizer = source(memorised)
    (example, *_) = sets(tokenizer)[0]
    cut = example.input_ids[: example.prompt_length]
    empty = Example(0, (*cut, EOS), len(cut), "", "")
    assert look(model, [empty], PAD, EOS, 4).extraction_strength == 0.0


def test_end_token_counts_where_the_tokenizer_has_none(memorised: Tiny) -> None:
    model, tokenizer = source(memorised)
    assert look(model, sets(tokenizer)[0], PAD, None, 4).extraction_strength == 1.0


def test_sample_is_drawn_by_the_seed_and_in_order() -> None:
    examples = [Example(i, (1, 2), 1, "", "") for i in range(30)]
    first, again, other = (sample(examples, 8, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({example.record for example in first}) == 8
    assert [example.record for example in first] == sorted(example.record for example in first)


def test_small_set_is_taken_whole() -> None:
    examples = [Example(i, (1, 2), 1, "", "") for i in range(3)]
    assert sample(examples, 3, 0) == examples
