"""The trained LoRA factors as one float32 vector, and gradients of them that are told apart by rows of the batch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn

from worker.unlearning.models import replaced_forwards

Scope = Literal["global", "layer", "module"]
_LAYER = re.compile(r"^(.*?\.\d+)\.")
_Targets = tuple[tuple[slice | None, Tensor], ...]
"""Rows of a layer's input (None: all), and where the gradient of a factor that comes from them goes; several."""


class FactorError(RuntimeError):
    """The model has nothing that can be trained, or not in a way that is understood."""


class MixedRows(RuntimeError):
    """A layer sees tokens in another order than the batch has them, so its rows cannot be told apart."""


class Factors:
    """Every trained parameter, moved into one vector on the device of the first of them.

    The parameters become views of `vector`, so that an optimizer's step is a handful of operations whatever the
    number of layers, and a copy of the vector is a copy of the adapter. The views stay when the object goes.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        if not named:
            raise FactorError("the model has no trainable parameter")
        if any(parameter.dtype != torch.float32 for _, parameter in named):
            raise FactorError("the trainable parameters are not float32")
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.device = self.parameters[0].device
        self._sizes = [parameter.numel() for parameter in self.parameters]
        self.vector = torch.cat([parameter.detach().flatten().to(self.device) for parameter in self.parameters])
        for parameter, part in zip(self.parameters, self.views(self.vector), strict=True):
            if parameter.device == self.device:
                parameter.data = part

    def views(self, vector: Tensor) -> list[Tensor]:
        """The parts of a vector of the same layout, in the shapes of the parameters."""
        parts: tuple[Tensor, ...] = vector.split(self._sizes)  # type: ignore[no-untyped-call]
        return [part.view_as(parameter) for part, parameter in zip(parts, self.parameters, strict=True)]

    def new_vector(self) -> Tensor:
        """Zeros of the same layout."""
        return torch.zeros_like(self.vector)

    def publish(self) -> None:
        """Bring a changed vector to the parameters that lie on other devices; the others are views of it."""
        for parameter, part in zip(self.parameters, self.views(self.vector), strict=True):
            if parameter.device != self.device:
                parameter.data.copy_(part)

    @contextmanager
    def holding(self, vector: Tensor) -> Iterator[None]:
        """Within the block the model computes with other values. No backward pass may cross its border."""
        kept = self.vector.clone()
        self.vector.copy_(vector)
        self.publish()
        try:
            yield
        finally:
            self.vector.copy_(kept)
            self.publish()

    def segments(self, scope: Scope) -> list[slice]:
        """Parts of the vector that are projected on their own: all of it, or by decoder layer or adapted module."""
        if scope == "global":
            return [slice(0, self.vector.numel())]
        result: list[slice] = []
        last, start, end = None, 0, 0
        for name, size in zip(self.names, self._sizes, strict=True):
            owner = _owner(name, scope)
            if owner != last and end > start:
                result.append(slice(start, end))
                start = end
            last, end = owner, end + size
        return [*result, slice(start, end)]


def _owner(name: str, scope: Scope) -> str:
    """What a parameter belongs to, such as ``model.layers.3`` or ``model.layers.3.self_attn.q_proj``."""
    module = name.split(".lora_")[0]
    if scope == "module":
        return module
    found = _LAYER.match(module + ".")
    return found.group(1) if found else module


@dataclass(frozen=True)
class Sink:
    """Where the gradient of some rows of the batch goes.

    Attributes:
        rows: rows of the batch, of all sequences in it.
        parts: views of a gradient vector, in the order and the shapes of the parameters.
    """

    rows: slice
    parts: Sequence[Tensor]


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within the block the model computes as its base alone. What is trained and what is frozen stays so after."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for parameter, before in trained:
            parameter.requires_grad_(before)


class GradientTaps:
    """Writes the gradients of LoRA factors where they are wanted, row group by row group.

    The rows of a batch never meet inside a model. So one backward pass over forget and retain rows holds both
    gradients, as sums over either's rows of (gradient of the output) x (input): the products that any backward
    pass of a linear layer forms, in two parts (blur.py needs them apart). Also lets the factors, which are kept
    in float32, compute in the type of their input, so that a bfloat16 model stays on its fast path.
    """

    def __init__(self, model: nn.Module, factors: Factors) -> None:
        index = {id(parameter): i for i, parameter in enumerate(factors.parameters)}
        self._layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        self._plain = [layer for layer in self._layers if _is_plain(layer)]
        self._linears = [
            factor
            for layer in self._layers
            for group in (layer.lora_A, layer.lora_B)
            for factor in group.values()
            if isinstance(factor, nn.Linear)
        ]
        # Factors that are not trained are in no vector, and compute in the type of their input all the same.
        self._positions = {
            id(linear): index[id(linear.weight)] for linear in self._linears if id(linear.weight) in index
        }
        tapped = set(self._positions.values())
        self._untapped = [(i, p) for i, p in enumerate(factors.parameters) if i not in tapped]
        self._sinks: tuple[Sink, ...] = ()
        self._shape = (0, 0)

    @property
    def separable(self) -> bool:
        """Whether every factor is in a linear layer, so that one pass can give both gradients."""
        return not self._untapped

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block, the factors' gradients go to the sinks of `collecting`."""
        casts = [layer.cast_input_dtype_enabled for layer in self._layers]
        for layer in self._layers:
            layer.cast_input_dtype_enabled = False
        try:
            # A plain layer is replaced as a whole and calls no factor; in the others, the factors themselves are.
            with replaced_forwards(self._linears, self._tapped), replaced_forwards(self._plain, self._adapted):
                yield
        finally:
            for layer, cast in zip(self._layers, casts, strict=True):
                layer.cast_input_dtype_enabled = cast

    @contextmanager
    def collecting(self, shape: tuple[int, int], *sinks: Sink) -> Iterator[None]:
        """A forward and backward pass over a batch of this shape, (batch, tokens), adds to the sinks.

        Raises:
            MixedRows: from the forward pass, when there are several sinks and a layer mixes rows.
        """
        self._shape, self._sinks = shape, sinks
        try:
            yield
            for i, parameter in self._untapped:  # factors of embeddings, which automatic differentiation serves
                (sink,) = sinks
                if parameter.grad is not None:
                    sink.parts[i].add_(parameter.grad.to(sink.parts[i].device))
        finally:
            for _, parameter in self._untapped:
                parameter.grad = None
            self._sinks = ()

    def _tapped(self, linear: nn.Linear) -> Any:  # noqa: ANN401 - takes a linear layer's place
        def forward(x: Tensor) -> Tensor:
            targets = self._targets(linear, self._rows(x))
            product: Tensor = _TappedLinear.apply(x, linear.weight, targets)  # type: ignore[no-untyped-call]
            return product

        return forward

    def _adapted(self, layer: Linear) -> Any:  # noqa: ANN401 - takes a LoRA layer's place
        (name,) = layer.active_adapters
        base, down, up, scaling = layer.base_layer, layer.lora_A[name], layer.lora_B[name], layer.scaling[name]

        def forward(x: Tensor) -> Tensor:
            if layer.disable_adapters:
                plain: Tensor = base(x)
                return plain
            rows = self._rows(x)
            targets = self._targets(down, rows), self._targets(up, rows)
            output: Tensor = _AdaptedLinear.apply(  # type: ignore[no-untyped-call]
                x, base.weight, base.bias, down.weight, up.weight, scaling, targets
            )
            return output

        return forward

    def _targets(self, linear: nn.Linear, rows: Sequence[slice | None]) -> _Targets:
        """Where the gradient of a factor goes; nowhere when it is not trained."""
        position = self._positions.get(id(linear))
        if position is None:
            return ()
        return tuple((part, sink.parts[position]) for part, sink in zip(rows, self._sinks, strict=True))

    def _rows(self, x: Tensor) -> list[slice | None]:
        """The entries of the first dimension of a layer's input that belong to each sink; None: all of them."""
        if len(self._sinks) < 2:
            return [None for _ in self._sinks]
        batch, tokens = self._shape
        if x.dim() == 3 and x.shape[0] == batch:
            return [sink.rows for sink in self._sinks]
        if x.dim() == 2 and x.shape[0] == batch * tokens:  # flattened by the model
            return [slice(sink.rows.start * tokens, sink.rows.stop * tokens) for sink in self._sinks]
        raise MixedRows("a layer of the model mixes the rows of a batch")


def _is_plain(layer: LoraLayer) -> bool:
    """Whether the layer is W x + scaling B A x of one frozen weight, and nothing else."""
    base = layer.get_base_layer()
    return (
        isinstance(layer, Linear)
        and type(base) is nn.Linear  # not one that is held in four bits
        and "forward" not in vars(base)  # where accelerate moves the input to the weight's device
        and not any(parameter.requires_grad for parameter in base.parameters())
        and len(layer.active_adapters) == 1
        and not layer.merged
        and not layer.lora_variant
    )


def _add_products(targets: _Targets, gradient: Tensor, x: Tensor) -> None:
    """Add (gradient of a linear layer's output) x (its input) to every target, over the rows that are its own."""
    for rows, target in targets:
        left, right = (gradient, x) if rows is None else (gradient[rows], x[rows])
        left, right = left.flatten(0, -2).T, right.flatten(0, -2)  # (out, n), (n, in)
        if left.dtype == target.dtype and left.device == target.device:
            target.addmm_(left, right)
        else:
            target.add_((left @ right).to(target.device))


class _TappedLinear(torch.autograd.Function):
    """x W^T whose weight gradient is added to several places, a group of rows to each."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own context
        x: Tensor,
        weight: Tensor,
        targets: _Targets,
    ) -> Tensor:
        """(..., in), (out, in) -> (..., out), in the type of x."""
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, cast)
        ctx.targets = targets
        return nn.functional.linear(x, cast)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:  # noqa: ANN401 - torch's own context
        """The gradient of x; that of the weight goes to the targets."""
        x, weight = ctx.saved_tensors
        _add_products(ctx.targets, gradient, x)
        return (gradient @ weight if ctx.needs_input_grad[0] else None), None, None


class _AdaptedLinear(torch.autograd.Function):
    """A whole LoRA layer, x W^T + c + scaling (x A^T) B^T, with the gradients of A and B tapped.

    The product with B adds itself to the frozen layer's output, and that with A to its gradient: all sums and
    scalings of tensors as large as the layer's input or output are gone. They cost PEFT more than the factors do.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401 - torch's own context
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scaling: float,
        targets: tuple[_Targets, _Targets],
    ) -> Tensor:
        """(..., in), (out, in), (out), (rank, in), (out, rank) -> (..., out), in the type of x."""
        down, up = down.to(x.dtype), up.to(x.dtype)
        inner = nn.functional.linear(x, down).mul_(scaling)  # (..., rank)
        ctx.save_for_backward(x, inner, weight, down, up)
        ctx.scaling, ctx.targets = scaling, targets
        output = nn.functional.linear(x.flatten(0, -2), weight, bias)
        return output.addmm_(inner.flatten(0, -2), up.T).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401 - torch's own context
        """The gradient of x; those of A and B go to the targets."""
        x, inner, weight, down, up = ctx.saved_tensors
        of_down, of_up = ctx.targets
        _add_products(of_up, gradient, inner)
        at_inner = (gradient @ up).mul_(ctx.scaling)
        _add_products(of_down, at_inner, x)
        at_x = None
        if ctx.needs_input_grad[0]:
            at_x = gradient.flatten(0, -2) @ weight
            at_x = at_x.addmm_(at_inner.flatten(0, -2), down).view_as(x)
        return at_x, None, None, None, None, None, None
