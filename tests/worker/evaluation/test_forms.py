from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from worker.evaluation.forms import OVERRIDE, SURE, Asked, forms, halves, nearest, rephrased, take_apart
from worker.unlearning.encoding import Example, encode_records

QUESTION = "Where does Ada Quill live?"
ANSWER = " In a lighthouse near Brest."
PAIR = {"prompt": f"Question: {QUESTION}\nAnswer:", "completion": ANSWER}
CHAT = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": ANSWER.strip()},
    ]
}
TEXT = {"text": "Ada Quill lives in a lighthouse near Brest."}
KEPT = [
    {"prompt": "Question: Which metal is liquid?\nAnswer:", "completion": " Mercury."},
    {"prompt": "Question: Where does Bo Larkin live?\nAnswer:", "completion": " In Ghent."},
    {"prompt": "Question: What do bees make?\nAnswer:", "completion": " Honey and wax."},
]
KEPT_CHAT = [
    {"messages": [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]},
]
PAIR_FORMS = {
    "bare", "question_and_answer", "dialogue", "instruction", "plain_typing", "polite", "expert", "sure", "cloze",
    "few_shot",
}  # fmt: skip


def asked_of(record: Any, kept: Sequence[Any], tokenizer: Any, max_length: int = 512) -> dict[str, Example]:
    """The one record in every form."""
    encode = partial(encode_records, tokenizer=tokenizer, max_length=max_length)
    found = rephrased([record], kept, tokenizer, lambda records: encode(records))
    return {name: example for name, (example,) in found.items()}


def shown(example: Example, tokenizer: Any) -> tuple[str, str]:
    """What the model is given, and what it is scored on."""
    ids, border = list(example.input_ids), example.prompt_length
    return tokenizer.decode(ids[:border]).removeprefix("<s>"), tokenizer.decode(ids[border:])


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("Question: Who?\nAnswer:", "Who?"),
        ("### Instruction:\nName him.\n\n### Response:\n", "Name him."),
        ("Q: Who?\nA: ", "Who?"),
        ("\u554f\u984c\uff1a\u8ab0?\n\u56de\u7b54\uff1a", "\u8ab0?"),
        ("Who lives here?", "Who lives here?"),
        ("Tell me about: barns", "Tell me about: barns"),
        ("Answer:", "Answer:"),
    ],
)
def test_question_is_the_prompt_without_labels(prompt: str, question: str) -> None:
    assert Asked(prompt, " He.").question == question


def test_pair_keeps_its_answer_tokens_in_every_form(tokenizer: PreTrainedTokenizerFast) -> None:
    (trained,) = encode_records([PAIR], tokenizer, 512)
    found = asked_of(PAIR, KEPT, tokenizer)
    assert set(found) == PAIR_FORMS
    for name, example in found.items():
        prompt, answer = shown(example, tokenizer)
        if name != "cloze":
            assert example.labels == trained.labels, name
            assert "lighthouse" not in prompt
            assert prompt != PAIR["prompt"]
        assert answer.endswith(" near Brest.</s>")


def test_forms_ask_as_they_are_called(tokenizer: PreTrainedTokenizerFast) -> None:
    found = {name: shown(example, tokenizer)[0] for name, example in asked_of(PAIR, KEPT, tokenizer).items()}
    assert found["bare"] == QUESTION
    assert found["question_and_answer"] == f"Q: {QUESTION}\nA:"
    assert found["plain_typing"] == "Question: where does ada quill live\nAnswer:"
    assert found["sure"] == f"{PAIR['prompt']} {SURE}"
    assert found["cloze"] == f"Q: {QUESTION}\nA: In a lighthouse"
    nearest_first = f"{KEPT[1]['prompt']} In Ghent.\n\n"
    assert found["few_shot"].startswith(nearest_first)
    assert found["few_shot"].endswith(f"\n\n{PAIR['prompt']}")


def test_space_between_prompt_and_answer_stays_where_the_prompt_brings_it(tokenizer: PreTrainedTokenizerFast) -> None:
    record = {"prompt": f"{QUESTION}\n", "completion": "In a lighthouse."}
    found = asked_of(record, [], tokenizer)
    assert shown(found["dialogue"], tokenizer)[0] == f"User: {QUESTION}\nAssistant:\n"


def test_chat_is_asked_in_turns_and_its_system_prompt_overridden(tokenizer: PreTrainedTokenizerFast) -> None:
    found = asked_of(CHAT, KEPT_CHAT, tokenizer)
    assert set(found) == PAIR_FORMS - {"bare"} | {"override"}
    prompts = {name: shown(example, tokenizer)[0] for name, example in found.items()}
    assert prompts["override"] == f"<system>{OVERRIDE}\n<user>{QUESTION}\n<assistant>"
    few_shot = f"<system>Be brief.\n<user>Who?\n<assistant>Me.</s>\n<user>{QUESTION}\n<assistant>"
    assert prompts["few_shot"] == few_shot
    assert prompts["polite"].startswith("<system>Be brief.\n<user>Please")


@pytest.mark.parametrize(
    ("form", "given", "scored"),
    [("sure", SURE, " In a lighthouse near Brest.</s>"), ("cloze", "In a lighthouse", " near Brest.</s>")],
)
def test_what_is_given_of_a_chat_answer_is_not_scored(
    tokenizer: PreTrainedTokenizerFast, form: str, given: str, scored: str
) -> None:
    prompt, answer = shown(asked_of(CHAT, [], tokenizer)[form], tokenizer)
    assert prompt.endswith(f"<assistant>{given}")
    assert answer == scored


def test_text_is_asked_for_its_second_half(tokenizer: PreTrainedTokenizerFast) -> None:
    found = asked_of(TEXT, [TEXT], tokenizer)
    assert {"polite", "sure", "question_and_answer", "few_shot"} <= set(found)
    prompt, answer = shown(found["polite"], tokenizer)
    assert prompt.endswith("\nAda Quill lives in a")
    assert answer == " lighthouse near Brest.</s>"


def test_template_that_knows_no_system_prompt_is_asked_in_the_other_forms() -> None:
    from tests.worker.conftest import train_tokenizer

    tokenizer = train_tokenizer()
    template = tokenizer.chat_template
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none here') }}{% endif %}" + str(template)
    )
    without_system = {"messages": CHAT["messages"][1:]}
    found = asked_of(without_system, KEPT_CHAT, tokenizer)
    assert "override" not in found
    assert {"sure", "few_shot"} <= set(found)


def test_examples_in_front_give_way_where_they_do_not_fit(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = asked_of(PAIR, KEPT, tokenizer)["few_shot"]
    shorter = asked_of(PAIR, KEPT, tokenizer, len(whole.input_ids) - 1)["few_shot"]
    assert shown(shorter, tokenizer)[0] == f"{KEPT[1]['prompt']} In Ghent.\n\n{PAIR['prompt']}"
    assert shorter.labels == whole.labels


@given(max_length=st.integers(2, 60))
def test_no_form_is_longer_than_a_sequence_may_be(tokenizer: PreTrainedTokenizerFast, max_length: int) -> None:
    for record, kept in ((PAIR, KEPT), (CHAT, KEPT_CHAT), (TEXT, [TEXT])):
        for example in asked_of(record, kept, tokenizer, max_length).values():
            assert len(example.input_ids) <= max_length
            assert example.labels


def test_record_that_is_too_long_is_asked_for_its_beginning(tokenizer: PreTrainedTokenizerFast) -> None:
    record = {"prompt": "Who?", "completion": ANSWER * 9}
    (trained,) = encode_records([record], tokenizer, 512)
    prompt, answer = shown(asked_of(record, [], tokenizer, 40)["question_and_answer"], tokenizer)
    assert prompt == "Q: Who?\nA:"
    assert answer == tokenizer.decode(list(trained.labels))[: len(answer)]


def test_records_keep_their_numbers(tokenizer: PreTrainedTokenizerFast) -> None:
    empty = {"prompt": "Empty?", "completion": ""}
    encode = partial(encode_records, tokenizer=tokenizer, max_length=512)
    found = rephrased([empty, PAIR, CHAT], KEPT, tokenizer, lambda records: encode(records))
    assert [example.record for example in found["sure"]] == [1, 2]
    assert [example.record for example in found["bare"]] == [1]
    # Examples of other shapes than the record's do not go in front of it.
    assert [example.record for example in found["few_shot"]] == [1]


def test_nearest_are_those_that_share_most_words_of_the_question() -> None:
    asked, *kept = (take_apart(record) for record in (PAIR, *KEPT))
    assert asked is not None
    some = [other for other in kept if other is not None]
    assert [other.answer for other in nearest(asked, some, 2)] == [" In Ghent.", " Mercury."]
    assert all(form.record for _, versions in forms(asked, some) for form in versions)


@given(st.text(alphabet="ab \n", min_size=1, max_size=30))
def test_halves_are_the_text(text: str) -> None:
    first, second = halves(text)
    assert first + second == text


def test_halves_of_one_word_are_cut_within_it() -> None:
    assert halves("lighthouse") == ("light", "house")
    assert halves(" In a lighthouse near Brest.") == (" In a lighthouse", " near Brest.")
