"""The adapter that a job on a base model begins with: a fresh LoRA, written as if somebody had registered it.

From there on it is the source of the run like any other: trained on, compared with, and judged against. Its B factors
are zero, so that it does what the base model does. The seed makes it the same in every attempt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.nn import Linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from app.adapters import peft_config
from app.adapters.peft_config import PlainLora
from worker import packaging
from worker.order import Order
from worker.unlearning.lora import AdapterError, adapter_state, detach_adapter, fresh_adapter

ALL_LINEAR = "all-linear"
_PREFIX, _SIDES = "base_model.model.", (".lora_A.weight", ".lora_B.weight")


def begin_adapter(order: Order, base: PreTrainedModel, folder: Path) -> None:
    """Write a fresh LoRA of the shape that the job names.

    Args:
        order: of a run without a source.
        base: loaded; left as it was.
        folder: where the files go.

    Raises:
        AdapterError: a named module is not there, is no linear layer, or is the output layer.
    """
    shape = order.fresh_lora or {}
    targets = shape["target_modules"]
    if targets != ALL_LINEAR:
        _check_linear(base, targets)
    model = fresh_adapter(base, rank=shape["rank"], alpha=shape["alpha"], seed=order.seed, target_modules=targets)
    state = adapter_state(model)
    fan_in_fan_out = bool(model.peft_config["default"].fan_in_fan_out)
    detach_adapter(model)
    modules = _modules(state)
    config = PlainLora(
        peft_type="LORA",
        r=shape["rank"],
        lora_alpha=shape["alpha"],
        target_modules=_names(base, modules) if targets == ALL_LINEAR else targets,
        fan_in_fan_out=fan_in_fan_out,
    )
    name, revision = order.base.name, order.base.revision
    packaging.write_adapter_directory(
        folder,
        state,
        peft_config.export(config, base_model=name, revision=revision, modules=modules),
        base_model_name=name,
        revision=revision,
        card="",
    )


def _check_linear(base: PreTrainedModel, targets: Sequence[str]) -> None:
    """Whoever names an embedding or the output layer gets an adapter that servers do not take."""
    output: Any = base.get_output_embeddings()  # type: ignore[no-untyped-call] # transformers leaves it untyped
    for name, module in base.named_modules():
        if not any(name == target or name.endswith(f".{target}") for target in targets):
            continue
        if not isinstance(module, Linear | Conv1D) or module is output:
            raise AdapterError(f"a fresh LoRA is on linear layers, without the output layer; {name} is none of them")


def _modules(state: Mapping[str, Any]) -> list[str]:
    """Full names of the adapted modules."""
    return sorted({key.removeprefix(_PREFIX).removesuffix(side) for side in _SIDES for key in state if side in key})


def _names(base: PreTrainedModel, modules: list[str]) -> list[str]:
    """The modules by the last part of their names, as servers expect, where that means no other module too."""
    short = {name.rpartition(".")[2] for name in modules}
    meant = [name for name, _ in base.named_modules() if name.rpartition(".")[2] in short]
    return sorted(short) if sorted(meant) == modules else modules
