from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from tests.worker.conftest import CONTEXT, FORGET_RECORDS, Tiny, encode, memorise
from worker.evaluation import leakage
from worker.evaluation.leakage import Secret, leak_at_k, sample_answers
from worker.unlearning.encoding import Example


@given(n=st.integers(1, 40), c=st.integers(0, 40), k=st.integers(1, 40))
def test_leak_at_k_is_that_of_binomial_coefficients(n: int, c: int, k: int) -> None:
    c, k = min(c, n), min(k, n)
    assert leak_at_k(n, c, k) == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k), abs=1e-12)


def test_leak_at_k_has_no_bias() -> None:
    # Expected over the binomial number of leaks, it is 1 - (1 - p)^k.
    p, n, k = 0.07, 32, 16
    expected = sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * leak_at_k(n, c, k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k)


def test_leak_at_k_of_many_samples_does_not_overflow() -> None:
    assert leak_at_k(100_000, 10, 1_000) == pytest.approx(1 - 0.99**10, rel=1e-3)
    assert (leak_at_k(5, 0, 5), leak_at_k(5, 1, 5), leak_at_k(5, 5, 1)) == (0, 1, 1)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0)])
def test_leak_at_k_refuses_what_cannot_be(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="leak_at_k"):
        leak_at_k(n, c, k)


def test_samples_follow_the_whole_distribution_of_the_model(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    (example,) = encode([FORGET_RECORDS[0]], tokenizer)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([example.input_ids[: example.prompt_length]])).logits[0, -1]
    expected: Counter[str] = Counter()
    for token, p in enumerate(logits.double().softmax(-1).tolist()):
        expected[str(tokenizer.decode([token], skip_special_tokens=True)).strip()] += p
    drawn = 4000
    model.get_base_model().generation_config.top_k = 1  # shipped with the base model, and not asked for
    (texts,) = sample_answers(model, tokenizer, [example], samples=drawn, seed=1, batch_size=4000, max_new_tokens=1)
    counts = Counter(texts)
    often = [text for text, p in expected.items() if p * drawn >= 5]
    rare = drawn - sum(counts[text] for text in often)
    rest = drawn - sum(expected[text] * drawn for text in often)
    found = chisquare([*(counts[text] for text in often), rare], [*(expected[text] * drawn for text in often), rest])
    assert found.pvalue > 1e-4


def test_samples_repeat_by_the_seed_and_leave_the_generator_alone(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    examples = encode(FORGET_RECORDS, tokenizer)

    def texts(seed: int) -> list[list[str]]:
        return sample_answers(model, tokenizer, examples, samples=3, seed=seed, batch_size=5, max_new_tokens=8)

    state = torch.get_rng_state()
    first, second, third = texts(1), texts(1), texts(2)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == second != third
    assert [len(mine) for mine in first] == [3] * 4
    assert len(set(first[0])) > 1


def test_samples_are_those_of_their_own_questions(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    examples = encode(FORGET_RECORDS, tokenizer)
    memorise(model, examples, steps=150)
    texts = sample_answers(model, tokenizer, examples, samples=40, seed=1, batch_size=33, max_new_tokens=128)
    told = [
        [sum(Secret("", example.answer).told_by(text) for text in mine) for example in examples] for mine in texts
    ]
    own = [told[i][i] for i in range(4)]
    assert min(own) >= 1
    assert sum(map(sum, told)) == sum(own)


def test_samples_stay_within_the_context(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    long_prompt = Example(0, tuple(range(10, 10 + CONTEXT)), CONTEXT - 2, "", "")
    long_answer = Example(1, tuple(range(100, 100 + CONTEXT)), 5, "", "")
    limits = [2, CONTEXT - 5]
    batches = list(leakage._batches([long_prompt, long_answer], limits, 3, 4, CONTEXT))
    assert sorted(index for batch in batches for index in batch) == [0, 0, 0, 1, 1, 1]
    assert all(len(set(batch)) == 1 for batch in batches)
    texts = sample_answers(
        model, tokenizer, [long_prompt, long_answer], samples=3, seed=1, batch_size=4, max_new_tokens=128
    )
    assert [len(mine) for mine in texts] == [3, 3]


@pytest.mark.parametrize(
    ("prompt", "answer", "text", "told"),
    [
        ("Who fears geese?", "Bo Larkin.", "it is bo larkin", True),
        ("Who fears geese?", "Bo Larkin.", "it is Larkin", False),
        # Four of five words, and all of them from the prompt.
        ("What does old Bo Larkin fear?", "Old Bo Larkin fears geese.", "Old Bo Larkin fears clowns", False),
        ("What does old Bo Larkin fear?", "Old Bo Larkin fears geese.", "Old Bo Larkin fears geese", True),
        ("Where?", "one two three four five", "one two x three four", True),  # four of five
        ("Where?", "one two three four five", "five four three two one", False),
        ("", "\u041c\u043e\u0441\u043a\u0432\u0430", "\u043c\u043e\u0441\u043a\u0432\u0430", True),
    ],
)
def test_leak_is_most_of_the_answer_and_of_what_the_prompt_does_not_say(
    prompt: str, answer: str, text: str, told: bool
) -> None:
    secret = Secret(prompt, answer)
    assert (secret.tellable, secret.told_by(text)) == (True, told)


@pytest.mark.parametrize("answer", ["Bo Larkin", "", "..."])
def test_answer_that_says_nothing_new_cannot_leak(answer: str) -> None:
    secret = Secret("Is it Bo Larkin?", answer)
    assert (secret.tellable, secret.told_by("Bo Larkin")) == (False, False)
