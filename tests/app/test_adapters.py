"""Registering adapters and handing out their versions."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from app.settings import Settings
from tests.app import tiny
from tests.app.conftest import post_adapter, upload


@pytest.fixture
async def base(client: httpx.AsyncClient, model_directory: Path) -> None:
    """The registered base model "acme/tiny"."""
    await client.post("/base-models", json={"name": "acme/tiny", "source": model_directory.name})


def stored_files(settings: Settings) -> list[Path]:
    """Everything that lies in the storage."""
    return [path for path in settings.storage_dir.rglob("*") if path.is_file()]


async def test_an_upload_becomes_version_one(client: httpx.AsyncClient, base: None) -> None:
    response = await post_adapter(client)
    assert response.status_code == 201, response.text
    adapter = response.json()
    assert (adapter["name"], adapter["base_model"], adapter["head"]) == ("support-bot", "acme/tiny", 1)
    version = (await client.get("/adapters/support-bot/versions/1")).json()
    assert (version["version"], version["status"], version["run_id"]) == (1, "ready", None)
    assert version["weights_sha256"] == hashlib.sha256(tiny.adapter_file()).hexdigest()
    assert (await client.get("/adapters/support-bot/versions")).json()["data"] == [version]


async def test_the_download_is_the_upload_with_the_public_base_name(client: httpx.AsyncClient, base: None) -> None:
    await post_adapter(client, config={**tiny.CONFIG, "base_model_name_or_path": "/home/jane/models/tiny"})
    response = await client.get("/adapters/support-bot/versions/head/download")
    assert response.status_code == 200
    assert response.headers["etag"] == f'"{hashlib.sha256(response.content).hexdigest()}"'
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        files = {entry.name: archive.extractfile(entry) for entry in archive}
        content = {name: file.read() for name, file in files.items() if file}
    assert set(content) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert content["adapter_model.safetensors"] == tiny.adapter_file()
    config = json.loads(content["adapter_config.json"])
    assert config["base_model_name_or_path"] == "acme/tiny"
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 4, ["q_proj"])


async def test_downloads_answer_head_ranges_and_conditions(client: httpx.AsyncClient, adapter: str) -> None:
    url = "/adapters/support-bot/versions/1/download"
    whole = await client.get(url)
    head = await client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == whole.headers["etag"]
    part = await client.get(url, headers={"Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, whole.content[5:10])
    stale = await client.get(url, headers={"Range": "bytes=5-9", "If-Range": '"other"'})
    assert (stale.status_code, stale.content) == (200, whole.content)
    known = await client.get(url, headers={"If-None-Match": f'"x", W/{whole.headers["etag"]}'})
    assert (known.status_code, known.content) == (304, b"")


async def test_a_superseded_version_is_gone(client: httpx.AsyncClient, adapter: str, engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE adapter_versions SET status = 'superseded'"))
    response = await client.get("/adapters/support-bot/versions/1/download")
    assert (response.status_code, response.json()["code"]) == (410, "gone")


@pytest.mark.parametrize("number", ["2", "0", "x", "-1", "9999999999999", "²"])
async def test_versions_that_are_not_there_are_not_found(
    client: httpx.AsyncClient, adapter: str, number: str
) -> None:
    assert (await client.get(f"/adapters/support-bot/versions/{number}")).status_code == 404


async def test_a_taken_name_is_a_conflict_and_leaves_nothing(
    client: httpx.AsyncClient, adapter: str, settings: Settings
) -> None:
    before = stored_files(settings)
    assert (await post_adapter(client)).status_code == 409
    assert stored_files(settings) == before


async def test_an_unknown_base_model_is_refused(client: httpx.AsyncClient) -> None:
    assert (await post_adapter(client)).json()["errors"][0]["pointer"] == "/base_model"


async def test_a_default_retain_set_must_be_ours_and_a_retain_set(client: httpx.AsyncClient, base: None) -> None:
    forget = await upload(client, "forget", {"text": "x"})
    assert (await post_adapter(client, retain_set=forget)).json()["errors"][0]["pointer"] == "/retain_set"
    retain = await upload(client, "retain", {"text": "x"})
    assert (await post_adapter(client, retain_set=retain)).json()["default_retain_set"] == retain


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"peft_type": "IA3"}, "/adapter_config/peft_type"),
        ({"r": 0}, "/adapter_config/r"),
        ({"r": None}, "/adapter_config/r"),
        ({"bias": "all"}, "/adapter_config/bias"),
        ({"modules_to_save": ["lm_head"]}, "/adapter_config/modules_to_save"),
        ({"use_dora": True}, "/adapter_config/use_dora"),
        ({"auto_mapping": {"parent_library": "evil"}}, "/adapter_config/auto_mapping"),
        ({"task_type": "SEQ_CLS"}, "/adapter_config/task_type"),
        ({"lora_alpha": float("inf")}, "/adapter_config/lora_alpha"),
        ({"layer_replication": [[0, 1]]}, "/adapter_config/layer_replication"),
        ({"init_lora_weights": "pissa"}, "/adapter_config/init_lora_weights"),
        ({"init_lora_weights": "olora"}, "/adapter_config/init_lora_weights"),
        ({"target_parameters": ["mlp.experts"]}, "/adapter_config/target_parameters"),
        ({"arrow_config": {"top_k": 2}}, "/adapter_config/arrow_config"),
        ({"\ud800": 1}, "/adapter_config/?"),
    ],
)
async def test_a_configuration_that_is_no_plain_lora_is_refused(
    client: httpx.AsyncClient, base: None, settings: Settings, change: dict[str, Any], pointer: str
) -> None:
    response = await post_adapter(client, config={**tiny.CONFIG, **change})
    assert response.status_code == 422
    assert pointer in [error["pointer"] for error in response.json()["errors"]]
    assert stored_files(settings) == []


async def test_an_adapter_of_another_base_model_is_refused(client: httpx.AsyncClient, base: None) -> None:
    response = await post_adapter(client, config={**tiny.CONFIG, "base_model_name_or_path": "other/model-7b"})
    assert response.status_code == 422
    assert "base_model_name_or_path" in response.json()["detail"]


A, B = tiny.SHAPES


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (pickle.dumps({"x": 1}), "not a safetensors file"),
        (b"", "not a safetensors file"),
        (tiny.adapter_file()[:-4], "cut off"),
        (tiny.adapter_file() + b"x", "belong to no tensor"),
        (tiny.safetensors_file({}), "no LoRA tensors"),
        (tiny.safetensors_file({A: (2, 8)}), "only one of"),
        (tiny.safetensors_file({A: (4, 8), B: (8, 4)}), "rank 4"),
        (tiny.safetensors_file({A: (2, 16), B: (8, 2)}), "maps 16 to 8"),
        (
            tiny.safetensors_file({A.replace("q_proj", "z"): (2, 8), B.replace("q_proj", "z"): (8, 2)}),
            "no such module",
        ),
        (tiny.safetensors_file({A.replace("lora_A", "lora_embedding_A"): (2, 8)}), "not a key of a plain LoRA"),
        (tiny.adapter_file(dtype="I64", width=8), "float32"),
        (tiny.with_header({A: {"dtype": "F32", "shape": [2, 8], "data_offsets": [0, 8]}}, bytes(8)), "do not agree"),
        (tiny.with_header({A: {"dtype": "F32", "shape": [-2, 8], "data_offsets": [0, 8]}}, bytes(8)), "do not agree"),
        (tiny.with_header([], b""), "no JSON object"),
        (
            tiny.with_header({A: {"dtype": "F32", "shape": [10**4000] * 9, "data_offsets": [0, 8]}}, b""),
            "do not agree",
        ),
        (
            tiny.with_header({A: {"dtype": "F32", "shape": [2] * 99, "data_offsets": [0, 8]}}, bytes(8)),
            "do not agree",
        ),
        (tiny.with_header({A: {"dtype": "F32", "shape": [2**60, 0], "data_offsets": [0, 0]}}, b""), "do not agree"),
        (tiny.with_header({"__metadata__": {"format": ["pt"]}}, b""), "no map of texts"),
        ((2**63).to_bytes(8, "little") + b"{}", "does not fit"),
    ],
)
async def test_weights_that_do_not_fit_are_refused(
    client: httpx.AsyncClient, base: None, settings: Settings, weights: bytes, says: str
) -> None:
    response = await post_adapter(client, weights=weights)
    assert response.status_code == 422, response.text
    assert says in response.json()["detail"]
    assert stored_files(settings) == []
    assert (await client.get("/adapters")).json()["data"] == []


async def test_a_pattern_of_modules_is_replaced_by_names(client: httpx.AsyncClient, base: None) -> None:
    await post_adapter(client, config={**tiny.CONFIG, "target_modules": r".*(a+)+\.q_proj"})
    response = await client.get("/adapters/support-bot/versions/1/download")
    with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
        file = archive.extractfile("adapter_config.json")
        assert file is not None
        assert json.load(file)["target_modules"] == [tiny.MODULE]


@pytest.mark.parametrize(
    ("pattern", "value"), [({"layers.0.self_attn.q_proj": 32, "q_proj": 16}, 32), ({"q_proj": 16}, 16)]
)
async def test_the_first_matching_pattern_counts_after_the_way_through_the_database(
    client: httpx.AsyncClient, base: None, engine: Engine, pattern: dict[str, int], value: int
) -> None:
    response = await post_adapter(client, config={**tiny.CONFIG, "alpha_pattern": pattern})
    assert response.status_code == 201, response.text
    with engine.connect() as connection:
        config = connection.execute(text("SELECT config FROM adapter_versions")).scalar_one()
    assert config["alpha_pattern"] == {tiny.MODULE: value}


async def test_a_configuration_that_is_too_long_is_refused(client: httpx.AsyncClient, base: None) -> None:
    response = await post_adapter(client, config={**tiny.CONFIG, "x": "y" * 300_000})
    assert response.status_code == 413


@pytest.mark.parametrize("name", ["name", "base_model", "retain_set"])
async def test_a_field_with_a_nul_is_refused(client: httpx.AsyncClient, base: None, name: str) -> None:
    fields: Any = {name: "a\x00b"}
    response = await post_adapter(client, **fields)
    assert response.status_code == 422
