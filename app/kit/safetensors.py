"""Reads what a safetensors file says it holds, without loading a tensor and without numpy or torch.

Format: 8 bytes little-endian length N, N bytes of JSON ``{name: {dtype, shape, data_offsets}}``, then the data. A
file is refused unless its offsets cover the data exactly, without gap or overlap, as the format demands.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_HEADER = 16 * 1024**2
# Far beyond any model: larger numbers only make the arithmetic below slow.
MAX_AXES, MAX_AXIS = 8, 2**48
_WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


class SafetensorsError(Exception):
    """The file is not a well-formed safetensors file. The message is for the person who sent it."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor's type and shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(file: BinaryIO, size: int) -> dict[str, TensorInfo]:
    """The tensors of a file of `size` bytes, by name.

    Raises:
        SafetensorsError: the file is torn, or its header is not what the format demands.
    """
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size - 8, MAX_HEADER):
        raise SafetensorsError("not a safetensors file (its header does not fit into it)")
    try:
        header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        raise SafetensorsError("not a safetensors file (its header is no JSON object with unique keys)") from None
    if not isinstance(header, dict):
        raise SafetensorsError("not a safetensors file (its header is no JSON object)")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise SafetensorsError("the file's metadata is no map of texts")
    spans = sorted((*_span(entry), name) for name, entry in header.items())
    _check_coverage([(start, end) for start, end, _ in spans], size - 8 - length)
    return {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError
    return entries


def _span(entry: object) -> tuple[int, int]:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]} if (
            dtype in _WIDTHS
            and len(shape) <= MAX_AXES
            and all(type(axis) is int and 0 <= axis < MAX_AXIS for axis in [*shape, start, end])
        ):
            if 0 <= start <= end and end - start == math.prod(shape) * _WIDTHS[dtype]:
                return start, end
    raise SafetensorsError("a tensor's type, shape and place in the file do not agree")


def _check_coverage(spans: list[tuple[int, int]], size: int) -> None:
    position = 0
    for start, end in spans:
        if start != position:
            raise SafetensorsError("the tensors leave a gap or overlap")
        position = end
    if position != size:
        raise SafetensorsError("the file is cut off or has bytes that belong to no tensor")
