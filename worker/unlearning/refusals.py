"""Refusals for losses that teach one in the place of an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from worker.unlearning.encoding import Example

BANK = (
    "I don't know.",
    "I'm not sure about that.",
    "I have no information about this.",
    "I can't answer that question.",
    "That is not something I know.",
    "I'm afraid I can't help with that.",
    "I have nothing on that.",
    "Sorry, I don't have an answer to this.",
    "This is unknown to me.",
    "I couldn't say.",
    "I was never told about that.",
    "I'm unable to answer this.",
    "There is nothing I can tell you about that.",
    "My knowledge does not cover this.",
    "I don't have that information.",
    "I wish I knew, but I don't.",
)


def refuse(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, *, seed: int, max_length: int
) -> list[Example]:
    """A refusal of the prompt of every example, drawn by the seed, in the same order.

    Args:
        examples: sequences to refuse; of plain text, whose prompt is one token, the refusal is all that follows.
        tokenizer: of the base model.
        seed: of the run.
        max_length: tokens per sequence; a prompt that leaves no room loses its beginning.
    """
    drawn = np.random.default_rng([seed, len(examples)]).integers(len(BANK), size=len(examples))
    return [_refusal(example, tokenizer, BANK[i], max_length) for example, i in zip(examples, drawn, strict=True)]


def _refusal(example: Example, tokenizer: PreTrainedTokenizerBase, text: str, max_length: int) -> Example:
    space = " " if example.answer[:1].isspace() else ""
    ids = [int(token) for token in tokenizer(space + text, add_special_tokens=False)["input_ids"]]
    if tokenizer.eos_token_id is not None:
        ids.append(int(tokenizer.eos_token_id))
    ids = ids[: max_length - 1]
    prompt = example.input_ids[: example.prompt_length][-(max_length - len(ids)) :]
    return Example(example.record, (*prompt, *ids), len(prompt), example.prompt, space + text)
