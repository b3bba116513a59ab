from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.unlearning.batches import FORGET_STREAM, RETAIN_STREAM, batch_indices, by_length, collate
from worker.unlearning.encoding import Example

SIZES = {"n": st.integers(1, 40), "size": st.integers(1, 12), "seed": st.integers(0, 2**31)}


@given(epoch=st.integers(0, 3), **SIZES)
def test_an_epoch_shows_every_example_once(n: int, size: int, seed: int, epoch: int) -> None:
    batches = -(-n // size)
    parts = [batch_indices(seed, epoch * batches + part, n, size) for part in range(batches)]
    assert Counter(index for part in parts for index in part) == Counter(range(n))
    assert max(map(len, parts)) <= size
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(step=st.integers(0, 500), **SIZES)
def test_a_step_is_the_same_however_it_is_reached(n: int, size: int, seed: int, step: int) -> None:
    alone = batch_indices(seed, step, n, size)
    for other in range(12):  # more epochs and streams than are remembered
        batch_indices(seed, other, n, size, stream=other % 2)
    assert batch_indices(seed, step, n, size) == alone


def test_epochs_seeds_and_streams_have_orders_of_their_own() -> None:
    orders = [
        batch_indices(0, 0, 50, 50),
        batch_indices(0, 1, 50, 50),
        batch_indices(1, 0, 50, 50),
        batch_indices(0, 0, 50, 50, stream=RETAIN_STREAM),
    ]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == batch_indices(0, 0, 50, 50, stream=FORGET_STREAM)


def test_positions_point_at_the_token_in_front_of_each_label() -> None:
    long, short = Example(0, (5, 6, 7, 8), 2, "", ""), Example(1, (9, 3), 1, "", "")
    batch = collate([long, short], pad_token_id=0)
    assert batch.input_ids.tolist() == [[5, 6, 7, 8], [9, 3, 0, 0]]
    assert batch.shape == (2, 4)
    assert batch.labels.tolist() == [7, 8, 3]
    assert batch.rows.tolist() == [0, 0, 1]
    assert batch.input_ids.flatten()[batch.positions].tolist() == [6, 7, 9]
    assert torch.equal(batch.input_ids.flatten()[batch.positions + 1], batch.labels)


@pytest.mark.parametrize("pad", [0, 7])
def test_padding_is_never_a_label(pad: int) -> None:
    lengths = (4, 2, 3)
    batch = collate([Example(i, (5,) * length, 1, "", "") for i, length in enumerate(lengths)], pad)
    assert batch.labels.tolist() == [5] * (3 + 1 + 2)
    assert batch.rows.tolist() == [0, 0, 0, 1, 2, 2]
    assert int((batch.input_ids == pad).sum()) == 3


@given(lengths=st.lists(st.integers(1, 9), max_size=20), size=st.integers(1, 5))
def test_length_batches_hold_everything_once_and_sorted(lengths: list[int], size: int) -> None:
    examples = [Example(i, (1,) * length, 1, "", "") for i, length in enumerate(lengths)]
    parts = by_length(examples, size)
    flat = [index for part in parts for index in part]
    assert sorted(flat) == list(range(len(lengths)))
    assert [lengths[index] for index in flat] == sorted(lengths, reverse=True)
    assert all(1 <= len(part) <= size for part in parts)
