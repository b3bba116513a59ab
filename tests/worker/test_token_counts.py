"""What the web side counts is what training reads."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from app.datasets.tokenizer_files import counter_of
from app.datasets.tokens import Counted, Unusable
from tests.worker.conftest import train_tokenizer
from worker.unlearning.encoding import EncodingError, encode_records

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "base"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'elf' %}{{ raise_exception('no') }}{% endif %}"
    "<{{ message['role'] }}> {% generation %}{{ message.content | trim }}{% endgeneration %}{{ eos_token }}\n"
    "{% endfor %}{% if add_generation_prompt %}<assistant> {% endif %}"
)
REWRITING = (
    "{% for m in messages %}{{ loop.revindex }}{{ m.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
)
WORDS = (
    "bees",
    "make",
    "honey",
    "and",
    "wax",
    "in",
    "Quell;",
    "what",
    "Ada",
    "know?",
    "naïve",
    "☃",
    "</s>",
    "12,345",
)


def records() -> list[dict[str, Any]]:
    """Records of every shape and many lengths."""
    draw = random.Random(5)  # noqa: S311 - fixed records

    def text(most: int) -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))

    found: list[dict[str, Any]] = [{"text": text(60)} for _ in range(25)]
    found += [{"prompt": text(40), "completion": draw.choice(["", " "]) + text(40)} for _ in range(25)]
    for _ in range(25):
        turns = [
            {"role": draw.choice(["system", "user", "assistant"]), "content": text(9)}
            for _ in range(draw.randint(1, 6))
        ]
        found.append({"messages": [*turns, {"role": "assistant", "content": text(20)}]})
    return found


def saved(folder: Path, tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tokenizer as a worker loads it from the directory that the web side reads."""
    tokenizer.save_pretrained(folder)
    return cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(folder))


def check(folder: Path, tokenizer: PreTrainedTokenizerFast, given: list[dict[str, Any]]) -> None:
    """Both sides agree on every record, whole and in windows."""
    counter = counter_of(folder)
    assert counter is not None
    for record in given:
        counted = counter.count(record)
        (whole,) = encode_records([record], tokenizer, 100_000)
        assert counted == Counted(len(whole.input_ids), whole.prompt_length), record
        for max_length in (2, 7, 16, 64):
            assert counted.sequences(max_length) == len(encode_records([record], tokenizer, max_length)), record
    assert counter.count_all(given) == [counter.count(record) for record in given]


@pytest.mark.parametrize("template", [TEMPLATE, REWRITING])
def test_every_shape_has_the_tokens_that_training_reads(tmp_path: Path, template: str) -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = template
    check(tmp_path, saved(tmp_path, tokenizer), records())


def test_a_tokenizer_that_ends_every_text(tmp_path: Path) -> None:
    ending = train_tokenizer()
    ending.backend_tokenizer.post_processor = type(ending.backend_tokenizer.post_processor)(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    check(tmp_path, saved(tmp_path, ending), records()[:50])


def test_a_tokenizer_that_starts_and_ends_with_one_token(tmp_path: Path) -> None:
    both = train_tokenizer()
    both.eos_token = "<s>"
    check(tmp_path, saved(tmp_path, both), [*records()[:50], {"text": "x"}])


def test_the_demo(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    check(tmp_path, cast(PreTrainedTokenizerFast, AutoTokenizer.from_pretrained(tmp_path)), records()[:50])


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_conversation_that_cannot_be_rendered_is_one_that_the_worker_refuses(
    tmp_path: Path, template: str | None
) -> None:
    tokenizer = train_tokenizer()
    tokenizer.chat_template = template
    loaded = saved(tmp_path, tokenizer)
    answer = {"role": "assistant", "content": "y"}
    counter = counter_of(tmp_path)
    assert counter is not None
    for messages in ([{"role": "elf", "content": "x"}, answer], [answer]):
        with pytest.raises(EncodingError):
            encode_records([{"messages": messages}], loaded, 64)
        with pytest.raises(Unusable):
            counter.count({"messages": messages})
        around: list[dict[str, Any]] = [{"text": "x"}, {"messages": messages}, {"text": "x"}]
        assert [counted is None for counted in counter.count_all(around)] == [False, True, False]


def test_a_directory_without_a_readable_tokenizer_has_no_counter(tmp_path: Path) -> None:
    assert counter_of(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{}")
    assert counter_of(tmp_path) is None
