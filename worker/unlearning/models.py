"""Base models from local directories, and their logits at the label positions only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from worker.unlearning.batches import Batch


class ModelError(ValueError):
    """A base model cannot be loaded or used."""


def load_base(
    directory: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a frozen causal language model and its tokenizer, from files alone.

    Nothing is downloaded, no code from the directory is run, and no pickle is opened.

    Args:
        directory: holds config.json, safetensors weights and the tokenizer.
        device: where the weights go.
        dtype: type of the weights; float32 unless memory is short.

    Raises:
        ModelError: the directory holds no model that can be loaded this way.
    """
    if not (directory / "config.json").is_file():
        raise ModelError("the base model directory has no config.json")
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, **safe)
        model = AutoModelForCausalLM.from_pretrained(directory, use_safetensors=True, dtype=dtype, **safe)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the base model cannot be loaded: {error}") from error
    # Evaluation mode switches dropout off: see `worker.unlearning.loop` on why it stays off while training.
    placed: PreTrainedModel = model.to(torch.device(device))  # type: ignore[arg-type] # stub of a wrapped method
    placed.requires_grad_(False).train(False)
    return placed, tokenizer


def context_length(config: PretrainedConfig) -> int | None:
    """Longest sequence in tokens that the model was built for; None where the architecture has no limit."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token id to pad with. Any will do: padding is masked, and never holds a label."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def label_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits at the positions that predict a label: (labels, vocab), rows in the order of ``batch.labels``.

    With a vocabulary of 128,000 the logits of all positions are the largest tensor of a step, and most of
    them (prompt, padding) are never used. So the hidden states are narrowed just in front of the output
    layer. The model's own forward does the rest, so that scaling or soft-capping of logits (Granite, Cohere,
    Gemma) stays exact.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        batch: on the device of the model.
    """

    def narrow(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = arguments[0].flatten(0, 1)  # (batch, tokens, hidden) -> (batch * tokens, hidden)
        return (hidden.index_select(0, batch.positions), *arguments[1:])  # (labels, hidden)

    handle = output_layer(model).register_forward_pre_hook(narrow)
    try:
        output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    finally:
        handle.remove()
    logits: Tensor = output.logits
    return logits


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model, with the adapter's layers in place; any other as it is."""
    inner: Any = model
    causal: PreTrainedModel = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return causal


def output_layer(model: nn.Module) -> nn.Module:
    """The module that turns hidden states into logits.

    Raises:
        ModelError: the architecture does not name one.
    """
    causal: Any = causal_model(model)
    layer = causal.get_output_embeddings()
    if not isinstance(layer, nn.Module):
        raise ModelError("the architecture names no output layer")
    return layer
