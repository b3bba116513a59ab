"""Files of a tiny model and adapter, written by hand so that the web side's tests need no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WIDTH, RANK = 8, 2
MODULE = "model.layers.0.self_attn.q_proj"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "acme/tiny",
    "r": RANK,
    "lora_alpha": 4,
    "target_modules": ["q_proj"],
    "bias": "none",
    "inference_mode": True,
    "modules_to_save": None,
}
SHAPES = {
    f"base_model.model.{MODULE}.lora_A.weight": (RANK, WIDTH),
    f"base_model.model.{MODULE}.lora_B.weight": (WIDTH, RANK),
}


def safetensors_file(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32", width: int = 4) -> bytes:
    """A well-formed file of zeros."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * width
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    return with_header(header, bytes(end))


def with_header(header: object, data: bytes) -> bytes:
    """A file with any header at all."""
    encoded = json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + data


def adapter_file(**kwargs: Any) -> bytes:
    """The weights of an adapter that fits `write_model`'s model."""
    return safetensors_file(SHAPES, **kwargs)


def write_model(folder: Path) -> Path:
    """A Llama's directory, as far as its headers tell."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    shapes = {f"{MODULE}.weight": (WIDTH, WIDTH), "model.embed_tokens.weight": (32, WIDTH)}
    (folder / "model.safetensors").write_bytes(safetensors_file(shapes))
    return folder
