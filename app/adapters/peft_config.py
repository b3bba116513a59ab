"""Reads ``adapter_config.json`` of a plain LoRA, and nothing else.

Only the fields that a plain LoRA needs are kept. PEFT writes many more, most of them unset: those are dropped when
they say "off" and refused when they turn something on, because the service would have to ignore it silently.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.kit.problems import FieldError, Invalid

Value = TypeVar("Value", int, float)

POINTER = "/adapter_config"
MAX_BYTES = 256 * 1024
_OFF: tuple[object, ...] = (None, False, "", [], {})
# Settings that only say how an adapter was begun or stored; they change nothing about a trained one.
_HARMLESS = {
    "corda_config", "eva_config", "inference_mode", "loftq_config", "lora_dropout", "megatron_core", "peft_version",
    "qalora_group_size", "runtime_config",
}  # fmt: skip

_ModuleName = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9_.]+$")]
_Rank = Annotated[int, Field(ge=1, le=1024)]
_Alpha = Annotated[float, Field(gt=0, le=65_536)]


class PlainLora(BaseModel):
    """The fields of a LoRA that change what it computes."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    peft_type: Literal["LORA"]
    task_type: Literal["CAUSAL_LM"] | None = "CAUSAL_LM"
    base_model_name_or_path: Annotated[str | None, Field(max_length=4096)] = None
    revision: Annotated[str | None, Field(max_length=128)] = None
    r: _Rank
    lora_alpha: _Alpha
    target_modules: list[_ModuleName] | Annotated[str, Field(min_length=1, max_length=4096)]
    bias: Literal["none"] = "none"
    fan_in_fan_out: bool = False
    use_rslora: bool = False
    init_lora_weights: Annotated[
        Literal[True, False, "gaussian", "eva", "orthogonal"] | None,
        Field(description="Others (PiSSA, OLoRA, LoftQ, CorDA) also changed the base model's weights."),
    ] = True
    rank_pattern: Annotated[dict[_ModuleName, _Rank], Field(max_length=4096)] = {}
    alpha_pattern: Annotated[dict[_ModuleName, _Alpha], Field(max_length=4096)] = {}


def parse(data: bytes) -> PlainLora:
    """Read and check an adapter's configuration.

    Raises:
        Invalid: it is no JSON object, no plain LoRA, or turns on something that is not supported.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise Invalid(f"{POINTER}: not a JSON document") from None
    if not isinstance(fields, dict):
        raise Invalid(f"{POINTER}: not a JSON object")
    known = set(PlainLora.model_fields)
    extra = sorted(key for key in fields if key not in known | _HARMLESS and fields[key] not in _OFF)
    if extra:
        raise Invalid(
            f"{POINTER}: only plain LoRA adapters are supported",
            errors=[FieldError(f"{POINTER}/{key[:64]}", "not supported; must be unset") for key in extra],
        )
    try:
        return PlainLora.model_validate({key: fields[key] for key in known & set(fields)})
    except ValidationError as error:
        raise Invalid(f"{POINTER}: not a plain LoRA configuration", errors=_errors(error)) from None


def export(config: PlainLora, *, base_model: str, revision: str | None, modules: list[str]) -> dict[str, Any]:
    """The configuration that is stored and shipped, with the public name of the base.

    Args:
        modules: the adapted modules' names, as found in the weights. They replace a pattern: what a client wrote
            is never run as a regular expression.
    """
    fields = config.model_dump(exclude={"init_lora_weights"})
    # By full name: in a pattern the order decides, and neither Postgres nor a sorted file keeps it.
    fields["rank_pattern"] = _expand(config.rank_pattern, modules)
    fields["alpha_pattern"] = _expand(config.alpha_pattern, modules)
    fields["base_model_name_or_path"], fields["revision"] = base_model, revision
    fields["task_type"] = "CAUSAL_LM"
    fields["lora_dropout"], fields["inference_mode"] = 0.0, True
    if isinstance(config.target_modules, str):
        fields["target_modules"] = modules
    return fields


def matching(pattern: Mapping[str, Value], module: str) -> Value | None:
    """PEFT's rule: a key matches a module's name or the end of it, and the first match counts."""
    return next((value for key, value in pattern.items() if module == key or module.endswith("." + key)), None)


def _expand(pattern: Mapping[str, Value], modules: Sequence[str]) -> dict[str, Value]:
    found = {module: matching(pattern, module) for module in modules} if pattern else {}
    return {module: value for module, value in found.items() if value is not None}


def _errors(error: ValidationError) -> list[FieldError]:
    return [
        FieldError(f"{POINTER}/" + "/".join(str(part) for part in item["loc"]), str(item["msg"]))
        for item in error.errors(include_input=False, include_url=False)
    ]
