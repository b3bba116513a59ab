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
FORGET_STREAM, RETAIN_STREAM, TUNING_STREAM, REHEARSAL_STREAM, ATTACK_STREAM, ATTACK_RATE_STREAM = range(6)


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
    seed: int, stage: int, attacker: int, step: int, n: int, batch_size: int
) -> tuple[list[int], list[int]]:
    """What a simulated attacker trains on in a step, and what it is tried on: disjoint wherever n > 1.

    It has half of the n examples, drawn, and the next attacker has the other half. Both halves are passed over in
    order, from the first again after the last. A pure function, so that a run can go on from any step.

    Args:
        seed, stage: of the run, and what tells its stretches of attackers apart.
        attacker: its number in the stretch, from 0.
        step: its own, from 0.
        n: number of forget examples, at least 1.
        batch_size: largest batch, of either.
    """
    order = np.random.default_rng([seed, ATTACK_STREAM, stage, attacker // 2]).permutation(n).tolist()
    halves = order[: max(1, n // 2)], order[n // 2 :]
    had, held_out = halves if attacker % 2 == 0 else reversed(halves)
    return _around(had, step, batch_size), _around(held_out, step, batch_size)


def attack_rate(seed: int, stage: int, attacker: int, most: float) -> float:
    """Learning rate of a simulated attacker: drawn from an eighth of the most to it, evenly in its logarithm."""
    drawn: float = np.random.default_rng([seed, ATTACK_RATE_STREAM, stage, attacker]).random()
    return most * 8**-drawn


def _around(items: Sequence[int], step: int, batch_size: int) -> list[int]:
    """The batch of a step that passes over items in order, again and again; none of them twice in it."""
    size = min(batch_size, len(items))
    return [items[(step * size + i) % len(items)] for i in range(size)]


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
