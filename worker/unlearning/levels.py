"""The two levels as a step sees them: which sequences may be drawn, and where they are in a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from worker.unlearning.batches import longest_first
from worker.unlearning.encoding import Example
from worker.unlearning.losses import Loss, StepSize
from worker.unlearning.refusals import refuse

Item = tuple[Example, ...]
"""The sequences of one forget or retain example: itself, and its refusal where the loss wants one."""


@dataclass(frozen=True)
class LossSet:
    """One of the two levels: its loss, its sequences, and what is known of them under the source adapter.

    Attributes:
        loss: what is minimised.
        items: every example that may be drawn.
        source_nll: (items, sequences per item) float32, summed label NLL in nats.
        anchors: of each item, (labels,) NLL that its tokens are drawn to; None without an anchor.
    """

    loss: Loss
    items: list[Item]
    source_nll: Tensor
    anchors: list[Tensor] | None = None

    def anchor(self, chosen: Sequence[int]) -> Tensor | None:
        """Of these items' labels, one after the other: (labels,)."""
        return None if self.anchors is None else torch.cat([self.anchors[index] for index in chosen])

    def size(self, chosen: Sequence[int]) -> StepSize:
        """Of the step that these items make up."""
        tokens = sum(len(example.labels) for index in chosen for example in self.items[index])
        return StepSize(len(chosen), tokens)

    def parts(self, chosen: Sequence[int], most: int) -> list[list[int]]:
        """The items in micro-batches of similar length."""
        lengths = [max(len(example.input_ids) for example in self.items[index]) for index in chosen]
        return [[chosen[i] for i in part] for part in longest_first(lengths, most)]


@dataclass(frozen=True)
class Group:
    """One level's share of a micro-batch.

    Attributes:
        number: 0 forget, 1 retain.
        level: loss and references.
        chosen: items, as indices into ``level.items``.
        examples: their sequences, one row each.
        rows, labels: where the rows and the labels are in the batch.
    """

    number: int
    level: LossSet
    chosen: Sequence[int]
    examples: Sequence[Example]
    rows: slice
    labels: slice


def items_of(
    loss: Loss, examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, seed: int, longest: int
) -> list[Item]:
    """Every example with what its loss wants beside it."""
    if not loss.needs_refusals:
        return [(example,) for example in examples]
    refusals = refuse(examples, tokenizer, seed=seed, max_length=longest)
    return list(zip(examples, refusals, strict=True))


def groups_of(pair: Sequence[Sequence[int]], sets: tuple[LossSet, LossSet]) -> list[Group]:
    """The levels that a micro-batch holds, and where their rows and labels are in it."""
    groups: list[Group] = []
    row = label = 0
    for number, chosen in enumerate(pair):
        if not chosen:
            continue
        level = sets[number]
        examples = [example for index in chosen for example in level.items[index]]
        next_row, next_label = row + len(examples), label + sum(len(example.labels) for example in examples)
        groups.append(Group(number, level, chosen, examples, slice(row, next_row), slice(label, next_label)))
        row, label = next_row, next_label
    return groups
