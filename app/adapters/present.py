"""What adapters and their versions look like from outside, and the card of an upload."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from app.adapters import serving
from app.adapters.schemas import AdapterRead, ServerCommands, ServingNeeds, ServingRead, VersionRead
from app.adapters.serving import Served
from app.adapters.tables import Adapter, AdapterVersion


def present_adapter(adapter: Adapter, base_model: str, head: AdapterVersion, versions: int) -> AdapterRead:
    """The outside view of an adapter.

    Args:
        base_model: name of its base model.
        versions: how many there are.
    """
    return AdapterRead.model_validate(
        {
            "id": adapter.id,
            "name": adapter.name,
            "base_model": base_model,
            "head": adapter.head,
            "fresh": adapter.fresh,
            "head_status": head.status,
            "versions": versions,
            "serving": _needs(_served(adapter.name, head)),
            "default_retain_set": adapter.default_retain_set_id,
            "training_set": adapter.training_set_id,
            "recipe": adapter.recipe,
            "unmatched_records": adapter.unmatched_records,
            "created_at": adapter.created_at,
        }
    )


def present_version(name: str, version: AdapterVersion) -> VersionRead:
    """The outside view of a version of the adapter called `name`."""
    return VersionRead.model_validate(
        {
            "adapter": name,
            "version": version.number,
            "status": version.status,
            "sha256": version.archive_sha256,
            "bytes": version.archive_bytes,
            "weights_sha256": version.weights_sha256,
            "source_version": version.source_version,
            "run_id": version.run_id,
            "created_at": version.created_at,
            "superseded_at": version.superseded_at,
            "purged_at": version.purged_at,
        }
    )


def present_serving(name: str, version: AdapterVersion) -> ServingRead:
    """How a version of the adapter called `name` is served."""
    served = _served(name, version)
    vllm = serving.vllm(served)
    return ServingRead(
        adapter=name,
        version=version.number,
        needs=_needs(served),
        unpack=serving.unpack(served, f"{name}-v{version.number}.tar.gz"),
        peft=serving.peft(served),
        vllm=ServerCommands(**vars(vllm)) if vllm else None,
        lorax=ServerCommands(**vars(serving.lorax(served))),
        tgi=ServerCommands(**vars(serving.tgi(served))),
        notes=serving.notes(served),
    )


def uploaded_card(name: str, config: Mapping[str, Any]) -> str:
    """The model card of an adapter as it was uploaded.

    Args:
        config: adapter_config.json, as it is shipped.
    """
    base = config["base_model_name_or_path"]
    served = Served.of(name, config, base, config["revision"])
    return (
        f"---\nlibrary_name: peft\nbase_model: {json.dumps(base)}\nbase_model_relation: adapter\n"
        "pipeline_tag: text-generation\ntags:\n- lora\n---\n\n"
        f"# {name}, version 1\n\nThe adapter as it was uploaded; nothing was unlearned from it.\n\n"
        f"{serving.instructions(served)}\n"
    )


def _served(name: str, version: AdapterVersion) -> Served:
    config = version.config
    return Served.of(name, config, config["base_model_name_or_path"], config["revision"])


def _needs(served: Served) -> ServingNeeds:
    return ServingNeeds(
        base_model=served.base_model,
        revision=served.revision,
        rank=served.rank,
        max_lora_rank=served.max_lora_rank,
        target_modules=list(served.target_modules),
    )
