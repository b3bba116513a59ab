"""Records to token sequences: which tokens the model reads and which of them it is scored on.

A record becomes one `Example`, or several when it is longer than ``max_length``. No token that should be
scored is ever dropped: consecutive windows overlap by one token, so each label token is a label in exactly
one window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase


class EncodingError(ValueError):
    """A record cannot be encoded. The message names its number, counted from 1, and never quotes it."""


@dataclass(frozen=True)
class Example:
    """One sequence of at most ``max_length`` tokens.

    Attributes:
        record: 0-based index of the record that the sequence was cut from.
        input_ids: all tokens, prompt first.
        prompt_length: the labels are ``input_ids[prompt_length:]``.
        prompt: text in front of the labels, as the model reads it.
        answer: text of the labels, without special tokens.
    """

    record: int
    input_ids: tuple[int, ...]
    prompt_length: int
    prompt: str
    answer: str

    @property
    def labels(self) -> tuple[int, ...]:
        """The tokens that are scored."""
        return self.input_ids[self.prompt_length :]


@dataclass(frozen=True)
class _Tokens:
    """A record before it is cut: all token ids, how many belong to the prompt, and both texts."""

    ids: list[int]
    prompt_length: int
    prompt: str
    answer: str


def encode_records(
    records: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    prompts_too: bool = False,
) -> list[Example]:
    """Tokenise records of any of the three shapes, in order.

    Args:
        records: ``{"prompt", "completion"}``, ``{"messages"}`` or ``{"text"}``; other keys are ignored.
        tokenizer: tokenizer of the base model. Its chat template renders ``messages``.
        max_length: tokens per sequence, at least 2; the caller caps it by the model's context.
        prompts_too: the tokens of prompts are labels, too, all but the first.

    Raises:
        EncodingError: a record has no known shape, no assistant turn, or needs a chat template that is not
            there.
        ValueError: ``max_length`` is below 2.
    """
    if max_length < 2:
        raise ValueError("max_length must be at least 2: one token to read and one to predict")
    examples: list[Example] = []
    for index, record in enumerate(records):
        tokens = _tokenise(record, tokenizer, index)
        if prompts_too:
            ids = tokens.ids
            tokens = _Tokens(ids, min(1, len(ids)), _decode(tokenizer, ids[:1]), _decode(tokenizer, ids[1:]))
        examples.extend(_windows(tokens, tokenizer, index, max_length))
    return examples


def _tokenise(record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, index: int) -> _Tokens:
    """Dispatch on the shape of the record."""
    if isinstance(record.get("messages"), Sequence) and not isinstance(record["messages"], str):
        return _chat(record["messages"], tokenizer, index)
    if isinstance(record.get("prompt"), str) and isinstance(record.get("completion"), str):
        return _pair(record["prompt"], record["completion"], tokenizer)
    if isinstance(record.get("text"), str):
        ids = _with_end(_ids(tokenizer, record["text"]), tokenizer)
        return _Tokens(ids, min(1, len(ids)), _decode(tokenizer, ids[:1]), _decode(tokenizer, ids[1:]))
    raise EncodingError(f"record {index + 1} has none of the shapes prompt and completion, messages, text")


def _pair(prompt: str, completion: str, tokenizer: PreTrainedTokenizerBase) -> _Tokens:
    """Prompt and completion, joined as they stand (TRL's convention: no space is put between them)."""
    head, ids = _ids(tokenizer, prompt), _ids(tokenizer, prompt + completion)
    if ids[: len(head)] != head:  # a token spans the border: the prompt keeps the tokens that it has alone
        ids = head + _ids(tokenizer, completion, special=False)
    return _from_first_label(_with_end(ids, tokenizer), len(head), prompt, completion)


def _chat(messages: Sequence[Any], tokenizer: PreTrainedTokenizerBase, index: int) -> _Tokens:
    """A conversation up to its last assistant turn, the target; the rest, rendered, is the prompt."""
    turns = _checked_turns(messages, index)
    if not tokenizer.chat_template:
        raise EncodingError(f"record {index + 1} has messages, but the tokenizer has no chat template")
    last = max((i for i, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
    if last is None:
        raise EncodingError(f"record {index + 1} has no assistant message")
    prompt = _render(tokenizer, turns[:last], index, add_generation_prompt=True)
    whole = _render(tokenizer, turns[: last + 1], index, add_generation_prompt=False)
    answer = turns[last]["content"]
    if not whole.startswith(prompt):  # a template that rewrites earlier turns: the answer is put after the prompt
        whole = prompt + answer
    head, ids = (_ids(tokenizer, text, special=False) for text in (prompt, whole))
    if ids[: len(head)] != head:
        ids = head + _ids(tokenizer, whole[len(prompt) :], special=False)
    return _from_first_label(_with_end(_without_tail(ids, tokenizer), tokenizer), len(head), prompt, answer)


def _checked_turns(messages: Sequence[Any], index: int) -> list[dict[str, str]]:
    """Messages as plain role and content strings."""
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        content = message.get("content") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not isinstance(content, str):
            raise EncodingError(f"record {index + 1} has a message without role and content strings")
        turns.append({"role": role, "content": content})
    return turns


def _render(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[dict[str, str]],
    index: int,
    *,
    add_generation_prompt: bool,
) -> str:
    """The chat template's text. A template may refuse a conversation; its own message could quote it."""
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except (TemplateError, ValueError, TypeError, KeyError, IndexError):
        raise EncodingError(f"record {index + 1} is refused by the tokenizer's chat template") from None
    return str(text)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = True) -> list[int]:
    """Token ids. An end token that the tokenizer adds by itself is removed: `_with_end` puts the only one."""
    ids = [int(token) for token in tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]]
    end = tokenizer.eos_token_id
    added = ids[-1:] == [end] and not text.endswith(str(tokenizer.eos_token))
    # Some tokenizers start and end with one and the same token; alone, it is the start.
    return ids[:-1] if added and (len(ids) > 1 or end != tokenizer.bos_token_id) else ids


def _with_end(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Append the end token unless it is there: where to stop is learned, and unlearned, too."""
    end = tokenizer.eos_token_id
    return ids if end is None or (ids and ids[-1] == end) else [*ids, int(end)]


def _without_tail(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Cut white space that a chat template puts after the end of a turn: it is never generated."""
    end = tokenizer.eos_token_id
    if end is None or end not in ids:
        return ids
    stop = len(ids) - ids[::-1].index(end)
    return ids[:stop] if not _decode(tokenizer, ids[stop:]).strip() else ids


def _from_first_label(ids: list[int], prompt_length: int, prompt: str, answer: str) -> _Tokens:
    """The first token of a sequence is predicted from nothing, so it is never a label."""
    return _Tokens(ids, min(max(prompt_length, 1), len(ids)), prompt, answer)


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _windows(tokens: _Tokens, tokenizer: PreTrainedTokenizerBase, index: int, max_length: int) -> list[Example]:
    """Cut a long record. Windows overlap by one token, which is context in the later one.

    Window k covers ids[k(m-1) : k(m-1)+m] for m = max_length; windows that hold no label are left out.
    """
    ids, first = tokens.ids, tokens.prompt_length
    if len(ids) <= max_length:
        return [Example(index, tuple(ids), first, tokens.prompt, tokens.answer)]
    examples = []
    for start in range(0, len(ids) - 1, max_length - 1):
        window = ids[start : start + max_length]
        prompt_length = max(first - start, 1)
        if prompt_length < len(window):
            texts = (_decode(tokenizer, part) for part in (window[:prompt_length], window[prompt_length:]))
            examples.append(Example(index, tuple(window), prompt_length, *texts))
    return examples
