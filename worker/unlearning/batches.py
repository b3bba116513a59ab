"""Which examples a step sees, and how they become tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from worker.unlearning.encoding import Example

# Orders that have nothing to do with each other. Further training by the evaluation has one of its own.
FORGET_STREAM, RETAIN_STREAM, TUNING_STREAM, REHEARSAL_STREAM, ATTACK_STREAM = range(5)


def batch_indices(seed: int, step: int, n: int, batch_size: int, *, stream: int = FORGET_STREAM) -> list[int]:
    """Indices of the examples of one step: a pure function, so a run can go on from any step.

    Every epoch is a fresh shuffle of all n examples, cut into ceil(n / batch_size) batches of nearly equal
    size. Each example is thus seen exactly once per epoch, and never twice in one batch.

    Args:
        seed: seed of the run, not negative.
        step: 0-based optimizer step.
        n: number of examples, at least 1.
        batch_size: largest batch, at least 1.
        stream: tells independent orders of one run apart, such as forget and retain.
    """
    batches = -(-n // batch_size)
    epoch, part = divmod(step, batches)
    order = _epoch_order(seed, stream, epoch, n)
    return list(order[part * n // batches : (part + 1) * n // batches])


def attack_indices(
    seed: int, step: int, n: int, batch_size: int, most_steps: int
) -> tuple[list[list[int]], list[int]]:
    """What a simulated attacker trains on, batch by batch, and what it is tried on: disjoint wherever n > 1.

    It has half of the n examples and passes over them in order, from the first again after the last.

    Args:
        seed, step: of the run; a pure function of both.
        n: number of forget examples, at least 1.
        batch_size: largest batch, of either.
        most_steps: it takes one to so many, drawn.
    """
    random = np.random.default_rng([seed, ATTACK_STREAM, step])
    order, steps = random.permutation(n).tolist(), int(random.integers(1, most_steps + 1))
    had, held_out = order[: max(1, n // 2)], order[n // 2 :]
    size = min(batch_size, len(had))
    batches = [[had[(start + i) % len(had)] for i in range(size)] for start in range(0, steps * size, size)]
    return batches, held_out[:batch_size]


@lru_cache(maxsize=8)
def _epoch_order(seed: int, stream: int, epoch: int, n: int) -> tuple[int, ...]:
    """A permutation of range(n)."""
    return tuple(np.random.default_rng([seed, stream, epoch]).permutation(n).tolist())


@dataclass(frozen=True)
class Batch:
    """Right-padded sequences. Index tensors are built on the host, so that a step on a device never waits for
    one.

    Attributes:
        input_ids: (batch, tokens) int64.
        positions: (labels,) int64, flat index into (batch * tokens) of the position that predicts each label.
        labels: (labels,) int64, row by row.
        rows: (labels,) int64, the row that each label belongs to.
    """

    input_ids: Tensor
    positions: Tensor
    labels: Tensor
    rows: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences, and tokens of each with its padding."""
        return self.input_ids.shape[0], self.input_ids.shape[1]

    def to(self, device: torch.device) -> Batch:
        """A copy on the device."""
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def collate(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Pad examples on the right to the longest of them. At least one example."""
    width = max(len(example.input_ids) for example in examples)
    ids = torch.full((len(examples), width), pad_token_id, dtype=torch.int64)
    positions: list[int] = []
    labels: list[int] = []
    rows: list[int] = []
    for row, example in enumerate(examples):
        length, first = len(example.input_ids), example.prompt_length
        ids[row, :length] = torch.tensor(example.input_ids)
        # The label at position t is predicted at position t - 1.
        positions.extend(range(row * width + first - 1, row * width + length - 1))
        labels.extend(example.labels)
        rows.extend([row] * len(example.labels))
    return Batch(ids, *(torch.tensor(column, dtype=torch.int64) for column in (positions, labels, rows)))


def by_length(examples: Sequence[Example], size: int) -> list[list[int]]:
    """Cut into batches of at most ``size`` indices, longest sequences first, so that padding stays small."""
    return longest_first([len(example.input_ids) for example in examples], size)


def longest_first(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in the order of falling lengths, cut into parts of at most ``size``."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + size] for start in range(0, len(order), size)]
