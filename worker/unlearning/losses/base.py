"""What a loss is: a value for every label token, and how the values of a step become one number.

Both parts see a micro-batch only. The numbers of sequences and tokens of the whole optimizer step come in from
outside, so that the sum over any split into micro-batches is the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worker.unlearning.scoring import token_nll


@dataclass(frozen=True)
class Rows:
    """The sequences of a micro-batch, or of one of its two sets.

    Attributes:
        of_label: (labels,) int64, the sequence that each label belongs to, counted from 0.
        lengths: (sequences,) float32, labels per sequence.
        source_nll: (sequences,) float32, summed NLL of the labels under the source adapter, in nats.
    """

    of_label: Tensor
    lengths: Tensor
    source_nll: Tensor

    def sums(self, values: Tensor) -> Tensor:
        """Sum of the values of each sequence: (labels,) -> (sequences,).

        A product with the 0/1 membership matrix instead of a scatter, because a scatter-add on a GPU adds in no
        fixed order and would make two runs differ.
        """
        numbers = torch.arange(len(self.lengths), device=values.device)
        return (self.of_label[None, :] == numbers[:, None]).to(values.dtype) @ values


@dataclass(frozen=True)
class StepSize:
    """What the whole optimizer step holds of a set: records, and label tokens."""

    records: int
    tokens: int


class Loss:
    """A forget or retain loss; to be minimised. This one is the mean over the step's tokens of `token_values`."""

    #: `token_values` compares with the logits of the source adapter.
    needs_source_logits = False
    #: every sequence is followed by a refusal of the same prompt, a sequence of its own.
    needs_refusals = False
    #: hidden states of a decoder layer take the place of logits; `place` chooses it.
    needs_layer = False
    #: its reversal makes an answer token likelier again; else a token at its anchor is let go (scoring.anchored).
    reversible = True

    def place(self, layers: int) -> int:
        """Which of so many decoder layers it works on, from 1 at the bottom; factors above it are not trained."""
        return layers

    def aim(self, hidden: Tensor, seed: int) -> None:
        """Learn from the source adapter's states of that layer at label positions, (labels, hidden)."""

    def token_values(self, logits: Tensor, labels: Tensor, source_logits: Tensor | None) -> Tensor:
        """One value per label: (labels, vocab), (labels,), (labels, vocab) or None -> (labels,) float32."""
        del source_logits
        return token_nll(logits, labels)

    def total(self, values: Tensor, rows: Rows, step: StepSize) -> Tensor:
        """The micro-batch's part of the step's loss: (labels,) -> ()."""
        del rows
        return values.sum() / step.tokens
