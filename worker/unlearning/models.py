"""Base models from local directories, and the two halves of a forward pass: hidden states, then logits of some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    masking_utils,
)
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from worker.unlearning.batches import Batch


class ModelError(ValueError):
    """A base model cannot be loaded or used."""


def load_base(
    directory: Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    four_bit: bool = False,
    spread: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a frozen causal language model and its tokenizer, from files alone.

    Nothing is downloaded, no code from the directory is run, and no pickle is opened.

    Args:
        directory: holds config.json, safetensors weights and the tokenizer.
        device: where the weights go.
        dtype: type of the weights; float32 unless memory is short.
        four_bit: hold the weights of linear layers as NF4 (needs bitsandbytes).
        spread: let accelerate spread the layers over all devices, for a model that one does not hold.

    Raises:
        ModelError: the directory holds no model that can be loaded this way, or bitsandbytes is missing.
    """
    if not (directory / "config.json").is_file():
        raise ModelError("the base model directory has no config.json")
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    placement: dict[str, Any] = {"device_map": "auto" if spread else {"": str(device)}} if spread or four_bit else {}
    if four_bit:
        placement["quantization_config"] = _nf4(dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, **safe)
        model = AutoModelForCausalLM.from_pretrained(
            directory, use_safetensors=True, dtype=dtype, **safe, **placement
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ModelError(f"the base model cannot be loaded: {error}") from error
    # A model that accelerate placed must not be moved; any other goes to its device here.
    placed: PreTrainedModel = model if placement else model.to(torch.device(device))  # type: ignore[arg-type] # stub of a wrapped method
    # Evaluation mode switches dropout off: see `worker.unlearning.loop` on why it stays off while training.
    placed.requires_grad_(False).train(False)
    return placed, tokenizer


def _nf4(dtype: torch.dtype) -> object:
    """Four-bit normal floats with double quantisation, computed in ``dtype``."""
    from transformers import BitsAndBytesConfig

    try:
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    except ImportError as error:
        raise ModelError("a four-bit base model needs bitsandbytes: pip install 'lethe[four-bit]'") from error


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


def hidden_states(model: nn.Module, batch: Batch) -> Tensor:
    """The last hidden states at the positions that predict a label: (labels, hidden), as ``batch.labels``.

    Sequences are padded on the right and attention is causal, so that no token ever sees padding: no mask is
    needed, and attention may use its fastest kernels.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        batch: on the device of the model.
    """
    with _single_sequences():
        output = backbone(model)(input_ids=batch.input_ids, use_cache=False)
    hidden: Tensor = output[0]  # (batch, tokens, hidden)
    return at_labels(hidden, batch)


def at_labels(hidden: Tensor, batch: Batch) -> Tensor:
    """Narrow (batch, tokens, hidden) to (labels, hidden)."""
    return hidden.flatten(0, 1).index_select(0, batch.positions.to(hidden.device))


@contextmanager
def _single_sequences() -> Iterator[None]:
    """Keep transformers from looking whether one row packs several sequences, which none of ours does.

    That look reads a value back from the device in every forward pass, and the device would idle meanwhile.
    """
    shipped = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda *_args, **_kwargs: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = shipped


class Head:
    """Everything of a causal language model behind its last hidden states: (n, hidden) -> logits (n, vocab).

    With a vocabulary of 128,000 the logits of all positions are the largest tensor of a step, and most of them
    (prompt, padding) are never used. The model's own forward runs around a stand-in for its backbone, so that
    scaling or soft-capping of logits (Granite, Cohere, Gemma) stays exact without knowing the architecture.
    """

    def __init__(self, model: nn.Module) -> None:
        self._causal: Any = causal_model(model)
        self._name = self._causal.base_model_prefix
        self._backbone = backbone(model)
        self._stand_in = _StandIn()
        layer = output_layer(model)
        self.trained = any(parameter.requires_grad for parameter in layer.parameters())
        self.vocabulary = int(self._causal.config.get_text_config().vocab_size)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states of any selection of positions."""
        self._stand_in.hidden = hidden[None]
        setattr(self._causal, self._name, self._stand_in)
        try:
            # Not a call of the module: its hooks are for whole forward passes.
            logits: Tensor = self._causal.forward(inputs_embeds=self._stand_in.hidden, use_cache=False).logits
        finally:
            setattr(self._causal, self._name, self._backbone)
            self._stand_in.hidden = None
        return logits[0]


class _StandIn(nn.Module):
    """Answers with hidden states that are already known."""

    hidden: Tensor | None = None

    def forward(self, *_args: object, **_kwargs: object) -> BaseModelOutputWithPast:
        """What a backbone would have computed."""
        return BaseModelOutputWithPast(last_hidden_state=self.hidden)


def causal_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside a PEFT model, with the adapter's layers in place; any other as it is."""
    inner: Any = model
    causal: PreTrainedModel = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return causal


def backbone(model: nn.Module) -> nn.Module:
    """The part of a causal language model that turns tokens into hidden states.

    Raises:
        ModelError: the architecture has no such part.
    """
    causal: Any = causal_model(model)
    found = getattr(causal, causal.base_model_prefix, None)
    if not isinstance(found, nn.Module):
        raise ModelError("the architecture does not separate its layers from its output layer")
    return found


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers, from the bottom.

    Raises:
        ModelError: they cannot be told from other lists of modules.
    """
    count = causal_model(model).config.get_text_config().num_hidden_layers
    for module in backbone(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ModelError("the architecture has no list of decoder layers")


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


@contextmanager
def checkpointed_layers(model: nn.Module, *, active: bool) -> Iterator[None]:
    """Within the block, decoder layers keep their inputs only and compute everything else again in the backward.

    transformers does that in training mode alone, where dropout would be on; so it is done here.
    """
    layers = [module for module in backbone(model).modules() if isinstance(module, GradientCheckpointingLayer)]
    if active and not layers:
        raise ModelError("the architecture does not support gradient_checkpointing")
    chosen = layers if active else []
    for layer in chosen:
        layer.forward = _recomputed(layer.forward)
    try:
        yield
    finally:
        for layer in chosen:
            del layer.forward


def _recomputed(forward: Any) -> Any:  # noqa: ANN401 - a layer's forward, whatever it takes
    def run(*args: Any, **kwargs: Any) -> object:  # noqa: ANN401
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Without dropout nothing draws random numbers, so that their state need not be kept.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
