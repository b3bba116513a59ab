"""Registering base models."""

from __future__ import annotations

import hashlib
from pathlib import Path

import httpx
import pytest

from app.settings import Settings
from tests.app import tiny


async def register(client: httpx.AsyncClient, source: str, name: str = "acme/tiny") -> httpx.Response:
    """Register a source under a name."""
    return await client.post("/base-models", json={"name": name, "source": source})


@pytest.mark.parametrize("absolute", [True, False])
async def test_a_directory_below_a_root_is_registered(
    client: httpx.AsyncClient, model_directory: Path, absolute: bool
) -> None:
    response = await register(client, str(model_directory) if absolute else model_directory.name)
    assert response.status_code == 201, response.text
    model = response.json()
    assert (model["name"], model["architecture"], model["parameters"]) == ("acme/tiny", "LlamaForCausalLM", 64 + 256)
    lines = [
        f"{hashlib.sha256((model_directory / name).read_bytes()).hexdigest()}  {name}\n"
        for name in ("config.json", "model.safetensors")
    ]
    assert model["digest"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    assert (await client.get("/base-models/acme/tiny")).json() == model


async def test_a_taken_name_is_a_conflict(client: httpx.AsyncClient, model_directory: Path) -> None:
    await register(client, "tiny")
    assert (await register(client, "tiny")).status_code == 409


@pytest.mark.parametrize(
    "source", ["/etc", "../..", "tiny/../../..", "nowhere", "/", "tiny\x00", "tiny/config.json", "a" * 300]
)
async def test_a_place_outside_the_roots_is_refused(
    client: httpx.AsyncClient, model_directory: Path, source: str
) -> None:
    response = await register(client, source)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/source"


async def test_a_link_does_not_lead_out_of_the_root(
    client: httpx.AsyncClient, settings: Settings, tmp_path: Path
) -> None:
    outside = tiny.write_model(tmp_path / "outside")
    (settings.model_roots[0] / "link").symlink_to(outside)
    assert (await register(client, "link")).status_code == 422


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", b"{", "config.json"),
        ("config.json", b'{"architectures": ["BertForMaskedLM"]}', "causal"),
        ("config.json", b'{"architectures": ["XForCausalLM"], "auto_map": {"AutoModel": "x.X"}}', "auto_map"),
        ("model.safetensors", b"\x80\x04pickle", "safetensors"),
        ("model.safetensors", tiny.adapter_file()[:-1], "cut off"),
    ],
)
async def test_a_directory_that_is_no_model_is_refused(
    client: httpx.AsyncClient, model_directory: Path, name: str, content: bytes, says: str
) -> None:
    (model_directory / name).write_bytes(content)
    response = await register(client, "tiny")
    assert response.status_code == 422
    assert says in response.json()["detail"]


async def test_pickle_weights_are_refused_by_name(client: httpx.AsyncClient, model_directory: Path) -> None:
    (model_directory / "model.safetensors").rename(model_directory / "pytorch_model.bin")
    assert "pickle" in (await register(client, "tiny")).json()["detail"]


@pytest.mark.parametrize("body", [{"name": "a b", "source": "x"}, {"name": "../x", "source": "x"}, {"name": "x"}])
async def test_a_bad_request_names_the_field(client: httpx.AsyncClient, body: dict[str, str]) -> None:
    response = await client.post("/base-models", json=body)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] in {"/name", "/source"}


async def test_an_unknown_field_is_refused(client: httpx.AsyncClient, model_directory: Path) -> None:
    response = await client.post("/base-models", json={"name": "a", "source": "tiny", "x": 1})
    assert response.status_code == 422
    assert response.json()["errors"] == [{"pointer": "/x", "detail": "Extra inputs are not permitted"}]
