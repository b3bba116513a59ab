"""Weights in few bits, as serving stacks hold them, simulated by rounding: no library for quantised layers is needed.

A layer is rounded whenever it computes, and its weight is put back at once. So the weights never change for good, and
one rounded layer at a time is all that lies in memory besides the model. The price is the rounding in every forward
pass, some ten to forty passes over the weights: few and large batches are best.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from worker.unlearning.models import output_layer, replaced_forwards

Scheme = Literal["int8", "nf4", "int4"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
BLOCK = 64  # values that share a scale in four bits
# Quantiles of the normal distribution (QLoRA, arXiv 2305.14314, appendix E).
NF4_LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class RoundingError(ValueError):
    """A model whose weights cannot be rounded. The message says why."""


def rounded(weight: Tensor, scheme: Scheme) -> Tensor:
    """The values that a weight has after rounding and back: (out, in) -> (out, in) of the same type.

    - "int8": one scale per output channel, max |w| / 127, integers from -127 to 127 (the weights of LLM.int8,
      arXiv 2208.07339; the activations, which it rounds too, stay as they are).
    - "nf4": one scale, max |w|, for every `BLOCK` values in the order of memory; the nearest of `NF4_LEVELS`. The
      scales stay in float32 ("double quantisation" would round them too).
    - "int4": one scale, max |w| / 7, for every `BLOCK` neighbours of an output channel, integers from -7 to 7.
    """
    values = weight.detach().float()
    if scheme == "int8":
        return _integers(values, 127).to(weight.dtype)
    if scheme == "nf4":
        return _by_block(values.reshape(1, -1), _nf4).view_as(values).to(weight.dtype)
    return _by_block(values, lambda blocks: _integers(blocks, 7)).to(weight.dtype)


def _integers(values: Tensor, largest: int) -> Tensor:
    """Every row to the nearest multiple of its own scale: (..., n) -> (..., n)."""
    scale = _not_zero(values.abs().amax(-1, keepdim=True) / largest)
    return (values / scale).round_().mul_(scale)


def _nf4(blocks: Tensor) -> Tensor:
    """Every row to the nearest of sixteen levels, scaled by its largest value: (..., n) -> (..., n)."""
    levels = torch.tensor(NF4_LEVELS, device=blocks.device)
    scale = _not_zero(blocks.abs().amax(-1, keepdim=True))
    scaled = blocks / scale
    codes = torch.zeros(scaled.shape, dtype=torch.uint8, device=blocks.device)
    # Fifteen comparisons are three times as fast as a binary search for each value (torch.bucketize, on a CPU).
    for border in ((levels[1:] + levels[:-1]) / 2).unbind():
        codes += scaled > border
    return levels[codes.int()] * scale


def _by_block(values: Tensor, rounding: Any) -> Tensor:  # noqa: ANN401 - (rows, blocks, BLOCK) to the same
    """Round (rows, n) in blocks of each row. The last one may be shorter; zeros do not change its scale."""
    rows, width = values.shape
    padded = F.pad(values, (0, -width % BLOCK)).view(rows, -1, BLOCK)
    result: Tensor = rounding(padded).view(rows, -1)[:, :width]
    return result


def _not_zero(scale: Tensor) -> Tensor:
    """A block of zeros has no scale; any will do."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))


@contextmanager
def rounded_layers(model: nn.Module, scheme: Scheme, *, merged: bool) -> Iterator[int]:
    """Within the block, every linear layer but the output layer computes with a rounded weight; yields how many do.

    Args:
        model: with or without a LoRA adapter. Neither weights nor factors are changed.
        scheme: see `rounded`.
        merged: the adapter is added to the weights first, in their own type, and rounded with them. Otherwise it
            stays as it is, beside a rounded base. The output layer is never rounded, and its adapter never merged.

    Raises:
        RoundingError: the weights are held in integers already or lie outside of the devices' memory.
    """
    adapted = {layer.get_base_layer(): layer for layer in model.modules() if isinstance(layer, LoraLayer)}
    layers = _linear_layers(model)
    own = {layer: adapted[layer] for layer in layers if merged and layer in adapted}

    def around(layer: nn.Module) -> Any:  # noqa: ANN401 - takes a forward's place
        return _rounding(layer, scheme, own.get(layer))

    # A merged adapter is in the weights, so its layer is nothing but the base layer in it.
    with replaced_forwards(layers, around), replaced_forwards(list(own.values()), _base_alone):
        yield len(layers)


def _linear_layers(model: nn.Module) -> list[nn.Module]:
    """Linear layers of the base model, but for the output layer. PEFT's names tell the factors of an adapter."""
    left_out = set(output_layer(model).modules())
    named = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    found: list[Any] = [module for name, module in named if "lora_" not in name and module not in left_out]
    if not found:
        raise RoundingError("the base model has no linear layer that could be rounded")
    if any(not layer.weight.is_floating_point() for layer in found):
        raise RoundingError("the base model is held in few bits already")
    if any(layer.weight.is_meta for layer in found):
        raise RoundingError("layers of the base model lie outside of the devices' memory")
    return found


def _rounding(layer: nn.Module, scheme: Scheme, adapter: LoraLayer | None) -> Any:  # noqa: ANN401 - a forward
    """The layer's forward, around which its weight is another one."""
    inner: Any = layer.forward
    weight: Any = layer.weight

    def forward(*args: Any, **kwargs: Any) -> object:  # noqa: ANN401
        kept = weight.data
        weight.data = _weight(kept, layer, scheme, adapter)
        try:
            return inner(*args, **kwargs)
        finally:
            weight.data = kept

    return forward


@torch.no_grad()
def _weight(kept: Tensor, layer: nn.Module, scheme: Scheme, adapter: LoraLayer | None) -> Tensor:
    """What a layer computes with."""
    whole = kept
    if adapter is not None and not adapter.disable_adapters:
        whole = sum((adapter.get_delta_weight(name).to(kept) for name in adapter.active_adapters), start=kept)
    # GPT-2 holds its weights as (in, out).
    return rounded(whole.T, scheme).T if isinstance(layer, Conv1D) else rounded(whole, scheme)


def _base_alone(adapter: LoraLayer) -> Any:  # noqa: ANN401 - a forward
    base: Any = adapter.get_base_layer()
    return lambda *args, **kwargs: base(*args, **kwargs)
