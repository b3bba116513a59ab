"""The trained factors as one vector."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch

from tests.worker.conftest import Tiny
from tests.worker.unlearning.engine import flat, load, plain_nll, sequences
from worker.unlearning.factors import FactorError, Factors, without_adapters

LAYER = re.compile(r"\.(\d+)\.")


def test_vector_holds_every_factor_and_changes_with_it(every: Tiny) -> None:
    model, _ = load(every)
    named = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    factors = Factors(model)
    assert factors.names == list(named)
    assert torch.equal(factors.vector, flat(list(named.values())))
    factors.vector.mul_(2.0)
    assert all(torch.equal(p, 2.0 * named[n]) for n, p in model.named_parameters() if n in named)


def test_views_of_a_vector_have_the_shapes_of_the_factors(llama: Tiny) -> None:
    factors = Factors(load(llama)[0])
    vector = factors.new_vector()
    assert not bool(vector.any())
    views = factors.views(vector)
    views[3].fill_(1.0)
    assert [view.shape for view in views] == [parameter.shape for parameter in factors.parameters]
    assert int(vector.sum()) == factors.parameters[3].numel()


def test_other_values_are_held_for_a_block_only(llama: Tiny) -> None:
    model, _ = load(llama)
    examples = sequences(llama, 3, 0)
    factors = Factors(model)
    before, kept = plain_nll(model, examples), factors.vector.clone()
    with model.disable_adapter():
        base = plain_nll(model, examples)
    with factors.holding(factors.new_vector()):  # factors of zero: the adapter adds nothing
        torch.testing.assert_close(plain_nll(model, examples), base)
    assert torch.equal(factors.vector, kept)
    assert torch.equal(plain_nll(model, examples), before)


def test_held_values_go_when_the_block_fails(llama: Tiny) -> None:
    factors = Factors(load(llama)[0])
    kept = factors.vector.clone()
    with pytest.raises(InterruptedError), factors.holding(factors.new_vector()):
        raise InterruptedError
    assert torch.equal(factors.vector, kept)


def test_model_without_its_adapters_is_its_base_and_nothing_is_thawed_after(every: Tiny) -> None:
    model, _ = load(every)
    examples = sequences(every, 3, 0)
    frozen = next(p for p in model.parameters() if p.requires_grad).requires_grad_(False)
    before = plain_nll(model, examples)
    with model.disable_adapter():
        base = plain_nll(model, examples)
    frozen.requires_grad_(False)
    with without_adapters(model):
        assert torch.equal(plain_nll(model, examples), base)
    assert torch.equal(plain_nll(model, examples), before)
    assert not frozen.requires_grad
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n and p is not frozen)
    assert not torch.allclose(base, before, rtol=1e-3)


def covered(segments: list[slice], size: int) -> bool:
    """Whether the segments are the whole vector, in order, without overlap."""
    ends = [0, *(part.stop for part in segments)]
    return ends[-1] == size and all(part.start == end for part, end in zip(segments, ends, strict=False))


def names_of(factors: Factors, part: slice) -> list[str]:
    """The factors that a segment covers. It cuts none in two."""
    result, at = [], 0
    for name, parameter in zip(factors.names, factors.parameters, strict=True):
        inside = part.start <= at and at + parameter.numel() <= part.stop
        assert inside or at + parameter.numel() <= part.start or at >= part.stop
        if inside:
            result.append(name)
        at += parameter.numel()
    return result


def test_whole_vector_is_one_segment(every: Tiny) -> None:
    factors = Factors(load(every)[0])
    assert factors.segments("global") == [slice(0, factors.vector.numel())]


def test_layer_segments_end_where_decoder_layers_end(every: Tiny) -> None:
    factors = Factors(load(every)[0])
    segments = factors.segments("layer")
    assert covered(segments, factors.vector.numel())
    layers = [{LAYER.search(name).group(1) for name in names_of(factors, part)} for part in segments]  # type: ignore[union-attr]
    assert layers == [{"0"}, {"1"}]


def test_module_segments_hold_both_factors_of_one_module(every: Tiny) -> None:
    factors = Factors(load(every)[0])
    segments = factors.segments("module")
    assert covered(segments, factors.vector.numel())
    for part in segments:
        first, second = names_of(factors, part)
        assert first.replace("lora_A", "lora_B") == second
        assert first != second


def test_factors_outside_of_layers_are_segments_of_their_own(outer: Tiny) -> None:
    factors = Factors(load(outer)[0])
    segments = factors.segments("layer")
    assert covered(segments, factors.vector.numel())
    assert [len(names_of(factors, part)) for part in segments] == [4, 4, 2]
    assert all("lm_head" in name for name in names_of(factors, segments[-1]))
    assert all(a.stop == b.start for a, b in pairwise(segments))


def test_half_precision_factors_are_refused(llama: Tiny) -> None:
    model, _ = load(llama)
    next(p for p in model.parameters() if p.requires_grad).data = torch.zeros(4, 32, dtype=torch.bfloat16)
    with pytest.raises(FactorError, match="not float32"):
        Factors(model)


def test_frozen_factors_are_refused(llama: Tiny) -> None:
    model, _ = load(llama)
    with pytest.raises(FactorError, match="no trainable parameter"):
        Factors(model.requires_grad_(False))
