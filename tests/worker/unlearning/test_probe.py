from __future__ import annotations

import math

import pytest
import torch

from tests.worker.conftest import Tiny
from tests.worker.unlearning.engine import PAD, nll_of, plain_outputs, sets, source
from worker.unlearning import probe
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


@pytest.mark.parametrize(
    ("end", "right", "strength"),
    [
        (EOS, [0, 1, 0, 1, 1], 0.25),
        (EOS, [0, 1, 0, 1, 0], 0.25),
        (EOS, [1, 1, 1, 0, 1], 0.0),
        (EOS, [1, 1, 1, 1, 0], 1.0),
        (None, [0, 1, 0, 1, 1], 0.4),
        (77, [0, 1, 0, 1, 1], 0.4),
    ],
)
def test_extraction_strength_is_the_run_to_the_end_without_the_end_token(
    llama: Tiny, monkeypatch: pytest.MonkeyPatch, end: int | None, right: list[int], strength: float
) -> None:
    scores = torch.zeros(5), torch.tensor(right, dtype=torch.bool)
    monkeypatch.setattr(probe, "label_scores", lambda *_: scores)
    example = Example(0, (9, 5, 6, 7, 8, EOS), 1, "", "")
    assert look(source(llama)[0], [example], PAD, end, 4).extraction_strength == pytest.approx(strength)


def test_answer_of_an_end_token_alone_shows_nothing(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "label_scores", lambda *_: (torch.zeros(1), torch.tensor([True])))
    shown = look(source(llama)[0], [Example(0, (9, EOS), 1, "", "")], PAD, EOS, 4)
    assert (shown.probability, shown.extraction_strength) == (1.0, 0.0)


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
