"""Base models from local directories, and the two halves of a forward pass: hidden states, then logits of some."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

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

_Module = TypeVar("_Module", bound=nn.Module)


class ModelError(ValueError):
    """A base model cannot be loaded or used."""


class LibraryMissing(ModelError):
    """Loading the base model this way needs a library that is not installed. The message names no folder."""


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
        ModelError: the directory holds no model that can be loaded this way.
        LibraryMissing: bitsandbytes is wanted and missing.
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
        if four_bit and isinstance(error, ImportError):
            raise LibraryMissing("four bits need the library bitsandbytes: pip install 'lethe[four-bit]'") from error
        raise ModelError(f"the base model cannot be loaded: {error}") from error
    # A model that accelerate placed must not be moved; any other goes to its device here.
    placed: PreTrainedModel = model if placement else model.to(torch.device(device))  # type: ignore[arg-type] # stub of a wrapped method
    for module in placed.modules() if four_bit else ():
        # bitsandbytes would repack these weights on a CPU when they are first used in evaluation mode, and give
        # wrong gradients from then on (seen with 0.50).
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment] # known to torch as a module
    # Evaluation mode switches dropout off: see `worker.unlearning.loop` on why it stays off while training.
    placed.requires_grad_(False).train(False)
    return placed, tokenizer


def _nf4(dtype: torch.dtype) -> object:
    """Four-bit normal floats with double quantisation, computed in ``dtype``."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


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
    with _unseen_tokens():
        output = backbone(model)(input_ids=batch.input_ids, use_cache=False)
    hidden: Tensor = output[0]  # (batch, tokens, hidden)
    return at_labels(hidden, batch)


def at_labels(hidden: Tensor, batch: Batch) -> Tensor:
    """Narrow (batch, tokens, hidden) to (labels, hidden)."""
    return hidden.flatten(0, 1).index_select(0, batch.positions.to(hidden.device))


@contextmanager
def _unseen_tokens() -> Iterator[None]:
    """Keep transformers from looking whether a row packs several sequences, which none of ours does, or is padded.

    Both looks read a value back from the device in every forward pass, and the device would idle meanwhile.
    """
    packed, padded = masking_utils.find_packed_sequence_indices, PreTrainedModel.warn_if_padding_and_no_attention_mask
    masking_utils.find_packed_sequence_indices = lambda *_args, **_kwargs: None
    PreTrainedModel.warn_if_padding_and_no_attention_mask = lambda *_args, **_kwargs: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = packed
        PreTrainedModel.warn_if_padding_and_no_attention_mask = padded  # type: ignore[method-assign]


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

    @property
    def decoder(self) -> _StandIn:
        """Itself: some architectures (OPT) ask a module within their backbone."""
        return self

    def forward(self, *_args: object, **_kwargs: object) -> BaseModelOutputWithPast:
        """What a backbone would have computed."""
        return _Output(last_hidden_state=self.hidden)


class _Output(BaseModelOutputWithPast):
    """Has whatever else an architecture's backbone would return (cross-attentions, router logits): nothing."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


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
    with replaced_forwards(layers if active else [], lambda layer: _recomputed(layer.forward)):
        yield


@contextmanager
def replaced_forwards(modules: Sequence[_Module], make: Callable[[_Module], Any]) -> Iterator[None]:
    """Within the block, these modules compute something else. What accelerate put there before comes back after."""
    before = [module.__dict__.get("forward") for module in modules]
    for module in modules:
        module.forward = make(module)
    try:
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            del module.forward
            if forward is not None:
                module.forward = forward


def _recomputed(forward: Any) -> Any:  # noqa: ANN401 - a layer's forward, whatever it takes
    def run(*args: Any, **kwargs: Any) -> object:  # noqa: ANN401
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Without dropout nothing draws random numbers, so that their state need not be kept.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run
