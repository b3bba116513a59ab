"""Looks at a model directory: may it be used, what is in it, what are its bytes. No torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from app.kit.problems import Invalid, invalid_field
from app.kit.safetensors import SafetensorsError, TensorInfo, read_header

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class ModelDirectory:
    """What a base model's directory holds. `shapes`: tensor name to shape."""

    path: Path
    architecture: str
    shapes: dict[str, tuple[int, ...]]
    digest: str

    @property
    def parameters(self) -> int:
        """Number of stored values."""
        return sum(prod(shape) for shape in self.shapes.values())


def inspect_directory(source: str, roots: Sequence[Path]) -> ModelDirectory:
    """Check a source and read its headers and digest.

    Raises:
        Invalid: outside the allowed roots, no causal language model, or weights other than safetensors.
    """
    path = _resolve(source, roots)
    config = _config(path)
    files = sorted(path.glob("*.safetensors"))
    if not files:
        found = " It has pickle files, which are never loaded." if _has_pickles(path) else ""
        raise invalid_field("/source", f"the directory has no .safetensors weights.{found}")
    _require_tokenizer(path)
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= {name: tensor.shape for name, tensor in _tensors(file).items()}
    return ModelDirectory(path, config["architectures"][0], shapes, _digest([path / "config.json", *files]))


def _resolve(source: str, roots: Sequence[Path]) -> Path:
    if not roots:
        raise invalid_field("/source", "this service allows no directory; its operator sets LETHE_MODEL_ROOTS")
    if "\x00" in source:
        raise invalid_field("/source", "must not hold a NUL character")
    for root in (root.resolve() for root in roots):
        try:
            # resolve() follows links, so that one inside a root cannot lead outside.
            path = (root / source).resolve()
            if path.is_relative_to(root) and path.is_dir():
                return path
        except OSError:  # a name that is too long, a loop of links
            continue
    # One answer for "outside" and "not there", so that nobody can feel out the file system.
    raise invalid_field("/source", "must be an existing directory below one of the allowed roots")


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        raise invalid_field("/source", "the directory has no readable config.json") from None
    if not isinstance(config, dict):
        raise invalid_field("/source", "config.json is no JSON object")
    if "auto_map" in config:
        raise invalid_field("/source", "config.json has auto_map: models that bring their own code are refused")
    match config.get("architectures"):
        case [str(name), *_] if name.endswith(("ForCausalLM", "LMHeadModel")):
            return config
    raise invalid_field("/source", "config.json names no causal language model in 'architectures'")


def _has_pickles(path: Path) -> bool:
    return any(next(path.glob(pattern), None) for pattern in PICKLES)


def _require_tokenizer(path: Path) -> None:
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise invalid_field("/source", "the directory has no tokenizer (tokenizer.json)")


def _tensors(file: Path) -> dict[str, TensorInfo]:
    try:
        with file.open("rb") as opened:
            return read_header(opened, file.stat().st_size)
    except SafetensorsError as error:
        raise Invalid(f"/source: {file.name}: {error}") from None


def _digest(files: Sequence[Path]) -> str:
    """sha256 over "sha256  name" lines, as sha256sum would print them."""
    lines = []
    for file in files:
        with file.open("rb") as opened:
            lines.append(f"{hashlib.file_digest(opened, 'sha256').hexdigest()}  {file.name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
