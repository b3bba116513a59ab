"""The models and records that the engine is measured on: the demo's own, and random Llamas of other sizes."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer, models
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from worker.unlearning.batches import FORGET_STREAM, RETAIN_STREAM, batch_indices
from worker.unlearning.encoding import Example, encode_records
from worker.unlearning.lora import attach_adapter, fresh_adapter
from worker.unlearning.models import context_length, load_base

DEMO = Path(__file__).parents[1] / "examples" / "demo"
BATCH_SIZE = 8
RANDOM_RECORDS = 16  # of each set; what they say does not matter, only that steps see different ones
RANK, ALPHA = 16, 32.0
PADDING = "<pad>"
FACTOR_SCALE = 0.02  # of the random B factors: those of a fresh adapter are zero, and with them half of the gradient


@dataclass(frozen=True)
class Shape:
    """A Llama with random weights, and the length of its sequences. Half of each sequence is answer."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int
    vocabulary: int
    tied: bool
    dtype: torch.dtype
    tokens: int


SHAPES = {
    "llama-40m": Shape(512, 1408, 8, 8, 8, 32_000, True, torch.float32, 128),
    "llama-1b": Shape(2048, 8192, 16, 32, 8, 128_256, True, torch.bfloat16, 512),  # Llama-3.2-1B
    "llama-8b": Shape(4096, 14_336, 32, 32, 8, 128_256, False, torch.bfloat16, 512),  # Llama-3.1-8B
}
NAMES = ("demo", *SHAPES)
SMALL = ("demo", "llama-40m")
"""What a CPU can be measured on in minutes."""


@dataclass(frozen=True)
class Case:
    """A model with its adapter, and records to unlearn and to keep.

    Attributes:
        name: one of `NAMES`.
        model: on its device, frozen but for the factors.
        tokenizer: gives the padding.
        forget, retain: sequences.
        seed: of the order of the records.
    """

    name: str
    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    forget: list[Example]
    retain: list[Example]
    seed: int

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        found: torch.device = next(self.model.parameters()).device
        return found

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights."""
        found: torch.dtype = next(p.dtype for p in self.model.parameters() if not p.requires_grad)
        return found

    def twin(self) -> nn.Module:
        """Another model with factors of its own; the frozen weights are shared."""
        frozen = {id(p): p for p in self.model.parameters() if not p.requires_grad}
        twin: nn.Module = copy.deepcopy(self.model, memo=dict(frozen))
        return twin

    def batch(self, step: int) -> tuple[list[int], list[int]]:
        """Forget and retain indices of a step, as a run draws them."""
        return (
            batch_indices(self.seed, step, len(self.forget), BATCH_SIZE, stream=FORGET_STREAM),
            batch_indices(self.seed, step, len(self.retain), BATCH_SIZE, stream=RETAIN_STREAM),
        )


def build_case(name: str, *, device: torch.device, seed: int, quick: bool) -> Case:
    """The case of that name, one of `NAMES`; ``quick`` makes a random model tiny."""
    if name == "demo":
        return _demo(device, seed)
    shape = SHAPES[name]
    return _random(name, _tiny(shape) if quick else shape, device, seed)


def _demo(device: torch.device, seed: int) -> Case:
    base, tokenizer = load_base(DEMO / "base", device=device)
    longest = context_length(base.config) or BATCH_SIZE
    forget, retain = (
        encode_records(_records(DEMO / "data" / f"{name}.jsonl"), tokenizer, longest) for name in ("forget", "retain")
    )
    return Case("demo", attach_adapter(base, DEMO / "adapter"), tokenizer, forget, retain, seed)


def _records(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _tiny(shape: Shape) -> Shape:
    """The same kind of model, too small to say anything about speed."""
    return replace(shape, hidden=32, intermediate=64, layers=2, heads=4, key_value_heads=2, vocabulary=256, tokens=16)


def _random(name: str, shape: Shape, device: torch.device, seed: int) -> Case:
    torch.manual_seed(seed)
    with device:
        base: Any = LlamaForCausalLM(_config(shape))
    base.requires_grad_(False).to(shape.dtype).train(False)
    model = fresh_adapter(base, rank=RANK, alpha=ALPHA, seed=seed)
    with torch.no_grad():
        for factor, parameter in model.named_parameters():
            if "lora_B" in factor:
                parameter.normal_(std=FACTOR_SCALE)
    forget, retain = (_random_examples(shape, seed + number) for number in (1, 2))
    return Case(name, model, _padding_tokenizer(), forget, retain, seed)


def _config(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=shape.tokens,
        tie_word_embeddings=shape.tied,
        dtype=shape.dtype,
    )


def _random_examples(shape: Shape, seed: int) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    size = (RANDOM_RECORDS, shape.tokens)
    rows: Sequence[list[int]] = torch.randint(1, shape.vocabulary, size, generator=generator).tolist()
    return [Example(i, tuple(row), shape.tokens // 2, "", "") for i, row in enumerate(rows)]


def _padding_tokenizer() -> PreTrainedTokenizerFast:
    """Random sequences are never read: of a tokenizer, only its padding is asked."""
    words = Tokenizer(models.WordLevel({PADDING: 0}, unk_token=PADDING))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PADDING, eos_token=PADDING)  # type: ignore[no-untyped-call]
