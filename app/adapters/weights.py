"""Checks the weights of a LoRA against its configuration and its base model, from the file's header alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from app.adapters.peft_config import PlainLora, matching
from app.kit.problems import MAX_ERRORS, FieldError, Invalid
from app.kit.safetensors import SafetensorsError, TensorInfo, read_header

POINTER = "/adapter_model"
_KEY = re.compile(r"base_model\.model\.(?P<module>[A-Za-z0-9_.]+)\.lora_(?P<side>[AB])\.weight")
_DTYPES = {"F32", "F16", "BF16"}
Shape = Sequence[int]


def check_weights(file: BinaryIO, size: int, config: PlainLora, base: Mapping[str, Shape]) -> list[str]:
    """Make sure that a file is the LoRA that its configuration describes, for this base model.

    Args:
        base: shape of every tensor of the base model, by name.

    Returns:
        The adapted modules' full names, sorted.

    Raises:
        Invalid: no safetensors file, or keys, types or shapes that do not fit.
    """
    try:
        tensors = read_header(file, size)
    except SafetensorsError as error:
        raise Invalid(f"{POINTER}: {error}", errors=[FieldError(POINTER, str(error))]) from None
    errors, pairs = _pairs(tensors)
    modules = _Modules(base)
    for module, sides in sorted(pairs.items()):
        if len(errors) >= MAX_ERRORS:
            break
        errors += _pair_errors(module, sides, config, modules)
    if not pairs and not errors:
        errors = [FieldError(POINTER, "the file holds no LoRA tensors")]
    if errors:
        raise Invalid(f"{POINTER}: {errors[0].detail}", errors=errors)
    return sorted(pairs)


def has_module(base: Mapping[str, Shape], name: str) -> bool:
    """Whether a base model has a weight matrix of a module with this name, or one that ends with it."""
    return bool(_Modules(base).shapes(name))


def _pairs(tensors: Mapping[str, TensorInfo]) -> tuple[list[FieldError], dict[str, dict[str, TensorInfo]]]:
    errors: list[FieldError] = []
    pairs: dict[str, dict[str, TensorInfo]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            errors.append(_error(key, "not a key of a plain LoRA (base_model.model.<module>.lora_A|B.weight)"))
        elif tensor.dtype not in _DTYPES or len(tensor.shape) != 2:
            errors.append(_error(key, "must be a matrix of float32, float16 or bfloat16"))
        else:
            pairs.setdefault(match["module"], {})[match["side"]] = tensor
    return errors, pairs


def _pair_errors(
    module: str, sides: Mapping[str, TensorInfo], config: PlainLora, modules: _Modules
) -> list[FieldError]:
    if set(sides) != {"A", "B"}:
        return [_error(module, "has only one of lora_A and lora_B")]
    (rank, inputs), (outputs, rank_b) = sides["A"].shape, sides["B"].shape
    expected = _rank(module, config)
    if rank != expected or rank_b != expected:
        return [_error(module, f"has rank {rank} and {rank_b}, the configuration says {expected}")]
    shapes = modules.shapes(module)
    if not shapes:
        return [_error(module, "the base model has no such module; is it the right base?")]
    # GPT-2's Conv1D stores (in, out), a Linear (out, in).
    if all(shape not in {(outputs, inputs), (inputs, outputs)} for shape in shapes):
        return [_error(module, f"maps {inputs} to {outputs} features, the base model's module does not")]
    return []


def _rank(module: str, config: PlainLora) -> int:
    return matching(config.rank_pattern, module) or config.r


class _Modules:
    """Finds a module's weight by name, where the file's names may lack the model's prefix ("transformer.")."""

    def __init__(self, base: Mapping[str, Shape]) -> None:
        self._matrices = {
            name.removesuffix(".weight"): tuple(shape)
            for name, shape in base.items()
            if name.endswith(".weight") and len(shape) == 2
        }

    def shapes(self, module: str) -> list[tuple[int, ...]]:
        """The shapes of the weights that the name may mean: one as a rule, none when there is no such module."""
        if module in self._matrices:
            return [self._matrices[module]]
        return [
            shape
            for name, shape in self._matrices.items()
            if name.endswith("." + module) or module.endswith("." + name)
        ]


def _error(key: str, detail: str) -> FieldError:
    # Keys come from the client: cut, so that a hostile file cannot make the answer large.
    return FieldError(f"{POINTER}/{key[:200]}".replace("\x00", ""), f"{key[:200]}: {detail}")
