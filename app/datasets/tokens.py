"""How many tokens a record has, counted with the base model's own tokenizer, without torch or transformers.

It follows worker/unlearning/encoding.py step by step; tests/worker/test_token_counts.py compares both.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, NoReturn

from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

# Requests run beside each other as it is: spread over threads, the few texts of one take twice the processor time.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Unusable(Exception):
    """A record that the worker could not encode either: the chat template is missing, or refuses it."""


@dataclass(frozen=True)
class Counted:
    """Tokens of a record, and how many of them are its prompt."""

    tokens: int
    prompt: int

    def sequences(self, max_length: int) -> int:
        """How many windows of at most `max_length` tokens hold something that is scored."""
        if self.tokens <= max_length:
            return 1
        starts = range(0, self.tokens - 1, max_length - 1)
        return sum(max(self.prompt - start, 1) < min(max_length, self.tokens - start) for start in starts)


class _Texts(NamedTuple):
    """A record as it is encoded: what stands before the answer, if anything does, both together, the answer alone."""

    prompt: str | None
    whole: str
    answer: str
    chat: bool = False

    @property
    def encoded(self) -> tuple[str, ...]:
        return (self.whole,) if self.prompt is None else (self.prompt, self.whole)


class TokenCounter:
    """Counts with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, special: Mapping[str, str], template: str | None) -> None:
        """`special`: special tokens by name, such as eos_token."""
        self._tokenizer = tokenizer
        self._special = dict(special)
        self._template = None if template is None else _environment().from_string(template)
        self._eos = special.get("eos_token")
        self._end = tokenizer.token_to_id(self._eos) if self._eos is not None else None

    def count(self, record: Mapping[str, Any]) -> Counted:
        """The tokens of a record of any of the three shapes. Raises Unusable."""
        (counted,) = self.count_all([record])
        if counted is None:
            raise Unusable
        return counted

    def count_all(self, records: Sequence[Mapping[str, Any]]) -> list[Counted | None]:
        """The same of many, which are encoded together; None for those that are unusable."""
        found = [self._texts(record) for record in records]
        plain = iter(self._ids([text for each in found if each and not each.chat for text in each.encoded]))
        chats = [text for each in found if each and each.chat for text in each.encoded]
        rendered = iter(self._ids(chats, special=False))
        return [each and self._counted(each, rendered if each.chat else plain) for each in found]

    def _texts(self, record: Mapping[str, Any]) -> _Texts | None:
        if "messages" in record:
            return self._of_chat(record["messages"])
        if "text" in record:
            return _Texts(None, record["text"], "")
        prompt, completion = record["prompt"], record["completion"]
        return _Texts(prompt, prompt + completion, completion)

    def _of_chat(self, messages: Sequence[Mapping[str, str]]) -> _Texts | None:
        # A record's last message is the assistant's: the target.
        try:
            prompt = self._render(messages[:-1], add_generation_prompt=True)
            whole = self._render(messages, add_generation_prompt=False)
        except Unusable:
            return None
        if not whole.startswith(prompt):
            whole = prompt + messages[-1]["content"]
        return _Texts(prompt, whole, whole[len(prompt) :], chat=True)

    def _counted(self, texts: _Texts, encoded: Iterator[list[int]]) -> Counted:
        if texts.prompt is None:
            ids = self._with_end(next(encoded))
            return Counted(len(ids), min(1, len(ids)))
        head, ids = next(encoded), next(encoded)
        if ids[: len(head)] != head:
            ids = head + self._ids([texts.answer], special=False)[0]
        return self._from_first_label(self._with_end(self._without_tail(ids) if texts.chat else ids), len(head))

    def _render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        # transformers renders no empty conversation: one that is nothing but an answer has no prompt.
        if self._template is None or not messages:
            raise Unusable
        try:
            return self._template.render(
                messages=list(messages), tools=None, documents=None, add_generation_prompt=add_generation_prompt,
                **self._special,
            )  # fmt: skip
        except (TemplateError, ValueError, TypeError, KeyError, IndexError):
            raise Unusable from None

    def _ids(self, texts: list[str], *, special: bool = True) -> list[list[int]]:
        # As a batch, since only then other threads run meanwhile. Fast: without the places of tokens in the text.
        encoded = self._tokenizer.encode_batch_fast(texts, add_special_tokens=special)
        return [self._without_added_end(found.ids, text) for found, text in zip(encoded, texts, strict=True)]

    def _without_added_end(self, ids: list[int], text: str) -> list[int]:
        added = ids[-1:] == [self._end] and not text.endswith(str(self._eos))
        return ids[:-1] if added and (len(ids) > 1 or self._special.get("bos_token") != self._eos) else ids

    def _with_end(self, ids: list[int]) -> list[int]:
        return ids if self._end is None or ids[-1:] == [self._end] else [*ids, self._end]

    def _without_tail(self, ids: list[int]) -> list[int]:
        if self._end is None or self._end not in ids:
            return ids
        stop = len(ids) - ids[::-1].index(self._end)
        return ids[:stop] if not self._tokenizer.decode(ids[stop:]).strip() else ids

    def _from_first_label(self, ids: list[int], prompt: int) -> Counted:
        return Counted(len(ids), min(max(prompt, 1), len(ids)))


def _environment() -> ImmutableSandboxedEnvironment:
    """Where transformers renders chat templates, as far as these can tell."""
    extensions: list[str | type[Extension]] = [loopcontrols, _Generation]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


class _Generation(Extension):
    """The tag that marks what the model wrote. Its content is rendered as it is."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[Node]:
        """The content, without the tags around it."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(_message: str) -> NoReturn:
    raise TemplateError
