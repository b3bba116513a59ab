from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from tests.worker.conftest import CONTEXT, FORGET_RECORDS, RETAIN_RECORDS, encode
from worker.unlearning.encoding import Example, encode_records
from worker.unlearning.refusals import BANK, refuse

RECORDS = FORGET_RECORDS + RETAIN_RECORDS
EOS = 1


def test_refusal_follows_the_prompt_in_the_place_of_the_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = encode(RECORDS, tokenizer)
    for example, refusal in zip(examples, refuse(examples, tokenizer, seed=0, max_length=CONTEXT), strict=True):
        prompt = refusal.input_ids[: refusal.prompt_length]
        assert prompt == example.input_ids[: example.prompt_length]
        assert (refusal.record, refusal.prompt) == (example.record, example.prompt)
        assert refusal.labels[-1] == EOS
        assert tokenizer.decode(list(refusal.labels[:-1])) == refusal.answer
        assert refusal.answer[1:] in BANK
        assert refusal.answer[0] == " ", "as the answers of these records"


def test_answer_without_a_space_in_front_has_a_refusal_without_one(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = encode([{"prompt": "Q:", "completion": "A."}], tokenizer)
    (refusal,) = refuse(examples, tokenizer, seed=0, max_length=CONTEXT)
    assert refusal.answer in BANK


def test_refusals_are_drawn_by_the_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = encode(RECORDS, tokenizer)
    first, again, other = (refuse(examples, tokenizer, seed=seed, max_length=CONTEXT) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert len({refusal.answer for refusal in first}) > 2


def test_long_prompt_loses_its_beginning(tokenizer: PreTrainedTokenizerFast) -> None:
    example = Example(0, tuple(range(3, 93)), 89, "", " x")
    (refusal,) = refuse([example], tokenizer, seed=0, max_length=60)
    assert len(refusal.input_ids) == 60
    assert refusal.input_ids[refusal.prompt_length - 1] == 91
    assert refusal.labels[-1] == EOS


def test_refusal_longer_than_a_sequence_is_cut_and_keeps_a_token_of_the_prompt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    example = Example(0, tuple(range(3, 12)), 5, "", " x")
    (refusal,) = refuse([example], tokenizer, seed=0, max_length=4)
    assert len(refusal.input_ids) == 4
    assert refusal.input_ids[0] == 7
    assert refusal.prompt_length == 1


def test_plain_text_is_refused_after_its_first_token(tokenizer: PreTrainedTokenizerFast) -> None:
    examples = encode_records([{"text": "Honey and wax."}], tokenizer, CONTEXT)
    (refusal,) = refuse(examples, tokenizer, seed=0, max_length=CONTEXT)
    assert refusal.prompt_length == 1
    assert refusal.input_ids[0] == examples[0].input_ids[0]
