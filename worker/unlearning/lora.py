"""LoRA adapters in and out: nothing of a file may be lost, added or silently changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
ADAPTER_NAME = "default"

# Initialisations that only fill the factors. Others (PiSSA, OLoRA, LoftQ, CorDA) also rewrite the base
# weights when the adapter is put on, so that the adapter would mean something else on the untouched base
# model that it is served on.
_PLAIN_INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")

# Settings of PEFT under which a LoRA layer is more than base + scaling B A, or its factors lie elsewhere.
_VARIANTS = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "monteclora_config",
    "target_parameters", "use_bdlora", "use_dora", "use_qalora", "velora_config",
)  # fmt: skip


class AdapterError(ValueError):
    """An adapter does not fit its base model, or its files are not a plain LoRA adapter."""


def attach_adapter(base: PreTrainedModel, directory: Path) -> PeftModel:
    """Put a stored LoRA adapter on a base model as the trainable adapter "default".

    The factors are float32 whatever the file holds, because steps of a small learning rate are lost to
    rounding in bfloat16. The model is left in evaluation mode, without dropout. ``base`` is changed in place.

    Args:
        base: a frozen base model.
        directory: holds adapter_config.json and adapter_model.safetensors.

    Raises:
        AdapterError: a file is missing or unreadable, the adapter is not plain LoRA, a key of the file fits
            no parameter, a LoRA parameter has no value in the file, a shape differs, or a value is not
            finite.
    """
    config, state = read_config(directory), read_state(directory)
    try:
        with known_peft_warnings():
            model = PeftModel(base, config, adapter_name=ADAPTER_NAME)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise AdapterError(f"the adapter configuration does not fit the base model: {error}") from error
    expected = _file_state(model)
    _check_state(expected, state)
    set_peft_model_state_dict(model, state, adapter_name=ADAPTER_NAME)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    _check_loaded(model, state)
    return model.eval()


def fresh_adapter(
    base: PreTrainedModel, *, rank: int, alpha: float, seed: int, target_modules: Sequence[str] | str = "all-linear"
) -> PeftModel:
    """Put a new LoRA adapter on a base model, to unlearn what the base model itself knows.

    Its B factors are zero, so that it starts as the base model: that is the reference which the losses compare
    with, without a second model.

    Args:
        base: a frozen base model, changed in place.
        rank: of every factor, at least 1.
        alpha: LoRA's scaling is alpha / rank.
        seed: of the A factors.
        target_modules: names of linear layers; all but the output layer by default.

    Raises:
        AdapterError: no module of the model has such a name.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=target_modules,
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),  # GPT-2
        task_type="CAUSAL_LM",
    )
    try:
        with known_peft_warnings(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = PeftModel(base, config, adapter_name=ADAPTER_NAME)
    except ValueError as error:
        raise AdapterError(f"the adapter does not fit the base model: {error}") from error
    return model.eval()


def renew(model: PeftModel, seed: int) -> None:
    """Give every LoRA module of a loaded adapter fresh factors, as before any training: B zero, A drawn.

    As PEFT draws them: uniform (Kaiming, a = sqrt 5), or normal of deviation 1 / rank where the configuration says
    "gaussian"; those of embeddings the other way round, A zero and B normal.

    Args:
        model: from `attach_adapter`, changed in place.
        seed: of what is drawn, on the CPU, whatever device the model is on.
    """
    generator = torch.Generator().manual_seed(seed)
    gaussian = model.peft_config[ADAPTER_NAME].init_lora_weights == "gaussian"
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            continue
        drawn = torch.zeros(parameter.shape)
        if "lora_embedding_B" in name:
            drawn.normal_(generator=generator)
        elif "lora_A." in name and gaussian:
            drawn.normal_(std=1 / len(drawn), generator=generator)
        elif "lora_A." in name:
            bound = (1 / drawn[0].numel()) ** 0.5  # sqrt(3) * sqrt(2 / (1 + a^2)) / sqrt(fan in)
            drawn.uniform_(-bound, bound, generator=generator)
        parameter.data.copy_(drawn)


def detach_adapter(model: PeftModel) -> None:
    """Give the base model its own layers back."""
    base: Any = model.base_model.unload()
    # Left behind, it would make PEFT warn of a second adapter where there is none.
    if hasattr(base, "peft_config"):
        del base.peft_config


@contextmanager
def known_peft_warnings() -> Iterator[None]:
    """Hide a warning that is about PEFT's own code: it reads a property that transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def read_config(directory: Path) -> LoraConfig:
    """Read adapter_config.json of a plain LoRA adapter, as one that can be trained on.

    Raises:
        AdapterError: the file is missing or unreadable, or the adapter is more than LoRA factors.
    """
    if not (directory / CONFIG_FILE).is_file():
        raise AdapterError(f"the adapter has no {CONFIG_FILE}")
    try:
        config = PeftConfig.from_pretrained(str(directory))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise AdapterError(f"{CONFIG_FILE} is not a PEFT configuration: {error}") from error
    if not isinstance(config, LoraConfig):
        raise AdapterError("the adapter is not a LoRA adapter")
    if config.modules_to_save or config.trainable_token_indices or config.bias != "none":
        raise AdapterError("the adapter trains more than LoRA factors (modules_to_save, tokens or biases)")
    if variant := next((name for name in _VARIANTS if getattr(config, name, None)), None):
        raise AdapterError(f"the adapter is a variant of LoRA ({variant}), which is not supported")
    if config.init_lora_weights not in _PLAIN_INITIALISATIONS:
        raise AdapterError("the adapter's init_lora_weights changes the base model; convert it to plain LoRA first")
    config.inference_mode = False
    return config


def read_state(directory: Path) -> dict[str, Tensor]:
    """Read adapter_model.safetensors: names, shapes and types as stored.

    Raises:
        AdapterError: the file is missing, is no safetensors file, is empty, or holds a value that is not
            finite.
    """
    if not (directory / WEIGHTS_FILE).is_file():
        raise AdapterError(f"the adapter has no {WEIGHTS_FILE}")
    try:
        state = load_file(directory / WEIGHTS_FILE)
    except (SafetensorError, OSError, ValueError) as error:
        raise AdapterError(f"{WEIGHTS_FILE} cannot be read: {error}") from error
    if not state:
        raise AdapterError(f"{WEIGHTS_FILE} holds no tensor")
    for key, value in state.items():
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise AdapterError(f"{key} holds values that are not finite numbers")
    return state


def adapter_state(model: PeftModel, *, like: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The trained factors as a file holds them: under the keys, with the shapes and in the types of the source.

    Args:
        model: a model from `attach_adapter` or `fresh_adapter`.
        like: the source file's tensors, from `read_state`; None for a fresh adapter, which is float32.

    Returns:
        Contiguous tensors on the CPU.

    Raises:
        AdapterError: keys or shapes differ from the source, or a value is not finite in the target type.
    """
    state = _file_state(model)
    like = state if like is None else like
    _check_state(state, like)
    # Copies: in training the factors are views of one vector, which a file cannot hold.
    result = {key: state[key].detach().to("cpu", like[key].dtype, copy=True).contiguous() for key in like}
    for key, value in result.items():
        if not bool(torch.isfinite(value).all()):
            raise AdapterError(f"{key} is not finite after unlearning")
    return result


def _file_state(model: PeftModel) -> dict[str, Tensor]:
    """The model's adapter tensors under the names that they have in a file."""
    state: dict[str, Tensor] = get_peft_model_state_dict(
        model, adapter_name=ADAPTER_NAME, save_embedding_layers=False
    )
    return state


def _check_state(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    """Same keys, same shapes."""
    unused, missing = sorted(found.keys() - expected.keys()), sorted(expected.keys() - found.keys())
    if unused:
        raise AdapterError(f"{len(unused)} tensors of the adapter fit nothing in the model, such as {unused[0]}")
    if missing:
        raise AdapterError(f"{len(missing)} LoRA tensors of the model have no value, such as {missing[0]}")
    for key, value in expected.items():
        if value.shape != found[key].shape:
            raise AdapterError(f"{key} has shape {tuple(found[key].shape)}, expected {tuple(value.shape)}")


def _check_loaded(model: PeftModel, state: Mapping[str, Tensor]) -> None:
    """Every value arrived, and there is something to train. Guards against a change in PEFT's key mapping."""
    loaded: Mapping[str, Any] = _file_state(model)
    for key, value in state.items():
        if not torch.equal(loaded[key].cpu(), value.float()):
            raise AdapterError(f"{key} was not taken over by the model")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise AdapterError("the adapter has nothing that can be trained")
