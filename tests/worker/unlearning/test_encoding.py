from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tests.worker.conftest import train_tokenizer
from worker.unlearning.encoding import EncodingError, encode_records

TOKENIZER = train_tokenizer()
BOS, EOS = 0, 1
SECRET = "Ada Quill"


def plain(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def test_labels_are_the_completion_and_the_end_token() -> None:
    (example,) = encode_records([{"prompt": "What do bees make?", "completion": " Honey."}], TOKENIZER, 64)
    assert example.input_ids == (BOS, *plain("What do bees make?"), *plain(" Honey."), EOS)
    assert example.labels == (*plain(" Honey."), EOS)
    assert (example.record, example.prompt, example.answer) == (0, "What do bees make?", " Honey.")


def test_end_token_is_not_doubled_when_the_completion_brings_it() -> None:
    (example,) = encode_records([{"prompt": "Q", "completion": " A</s>"}], TOKENIZER, 64)
    assert example.labels == (*plain(" A"), EOS)


def test_prompt_keeps_its_own_tokens_when_a_token_spans_the_border() -> None:
    longest = max((str(TOKENIZER.decode([token])) for token in range(3, len(TOKENIZER))), key=len)
    prompt, completion = longest[:-1], longest[-1]
    assert len(plain(prompt + completion)) == 1, "one token spans the border"
    (example,) = encode_records([{"prompt": prompt, "completion": completion}], TOKENIZER, 64)
    assert example.input_ids == (BOS, *plain(prompt), *plain(completion), EOS)
    assert example.labels == (*plain(completion), EOS)


def test_tokenizer_that_ends_every_text_does_not_end_the_prompt() -> None:
    ending = train_tokenizer()
    ending.backend_tokenizer.post_processor = type(ending.backend_tokenizer.post_processor)(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    (example,) = encode_records([{"prompt": "Q?", "completion": " A."}], ending, 64)
    assert example.input_ids == (BOS, *plain("Q?"), *plain(" A."), EOS)


def test_start_token_of_an_empty_prompt_is_kept_where_it_is_also_the_end_token() -> None:
    both = train_tokenizer()
    both.eos_token = "<s>"
    (example,) = encode_records([{"prompt": "", "completion": "A."}], both, 64)
    assert example.input_ids == (BOS, *plain("A."), BOS)
    assert example.prompt_length == 1


def test_tokenizer_without_an_end_token_appends_none() -> None:
    endless = train_tokenizer()
    endless.eos_token = None
    (example,) = encode_records([{"prompt": "Q?", "completion": " A."}], endless, 64)
    assert example.labels == plain(" A.")


def test_text_labels_every_token_but_the_first() -> None:
    (example,) = encode_records([{"text": "Honey and wax."}], TOKENIZER, 64)
    assert example.input_ids == (BOS, *plain("Honey and wax."), EOS)
    assert example.prompt_length == 1


def test_last_assistant_turn_is_the_target_and_later_turns_are_left_out() -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Cleo Marsh"},
        {"role": "user", "content": "Thanks"},
    ]
    (example,) = encode_records([{"messages": messages}], TOKENIZER, 96)
    assert example.prompt == "<s><user>Hi\n<assistant>Hello</s>\n<user>Who?\n<assistant>"
    assert example.labels == (*plain("Cleo Marsh"), EOS), "the template's line feed is not a label"
    assert example.input_ids.count(BOS) == 1
    assert example.answer == "Cleo Marsh"


def test_template_that_rewrites_history_still_labels_the_answer() -> None:
    rewriting = train_tokenizer()
    rewriting.chat_template = "{{ messages | length }}:{{ messages[-1]['content'] }}>"
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Cleo"}]
    (example,) = encode_records([{"messages": turns}], rewriting, 64)
    assert example.prompt == "1:Who?>"
    assert example.labels == (*plain("Cleo"), EOS)


def test_other_keys_are_ignored() -> None:
    record = {"prompt": "Q", "completion": " A", "id": "r1", "subject": "s1"}
    assert encode_records([record], TOKENIZER, 64) == encode_records(
        [{"prompt": "Q", "completion": " A"}], TOKENIZER, 64
    )


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": SECRET}, "has none of the shapes"),
        ({"text": 3, "note": SECRET}, "has none of the shapes"),
        ({"messages": [{"role": "user", "content": SECRET}]}, "has no assistant message"),
        ({"messages": [{"role": "assistant", "content": [SECRET]}]}, "without role and content"),
        ({"messages": [SECRET]}, "without role and content"),
    ],
)
def test_unusable_record_is_named_by_number_and_never_quoted(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(EncodingError, match=f"record 2 .*{reason}|record 2 {reason}") as caught:
        encode_records([{"text": "fine"}, record], TOKENIZER, 64)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "reason"),
    [(None, "no chat template"), ("{{ raise_exception(messages[0]['content']) }}", "refused")],
)
def test_messages_without_a_willing_chat_template_are_refused(template: str | None, reason: str) -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(EncodingError, match=reason) as caught:
        encode_records([{"messages": [{"role": "assistant", "content": SECRET}]}], tokenizer, 64)
    assert SECRET not in str(caught.value)


def test_window_of_one_token_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        encode_records([{"text": "x"}], TOKENIZER, 1)


@settings(deadline=None, max_examples=60)
@given(
    prompt=st.text(alphabet="abcdé ", max_size=30),
    completion=st.text(alphabet="xyz, ", min_size=1, max_size=60),
    max_length=st.integers(2, 20),
)
def test_windows_label_every_label_token_exactly_once(prompt: str, completion: str, max_length: int) -> None:
    record = {"prompt": prompt, "completion": completion}
    (whole,) = encode_records([record], TOKENIZER, 1000)
    windows = encode_records([record], TOKENIZER, max_length)
    assert all(len(window.input_ids) <= max_length and window.prompt_length >= 1 for window in windows)
    assert tuple(token for window in windows for token in window.labels) == whole.labels
    assert {window.record for window in windows} == {0}


def test_windows_overlap_by_one_token_of_context(tokenizer: PreTrainedTokenizerFast) -> None:
    record = {"text": "On the third of May, in a lighthouse near Brest."}
    windows = encode_records([record], tokenizer, 8)
    assert len(windows) > 2
    for before, after in pairwise(windows):
        assert before.input_ids[-1] == after.input_ids[0]
