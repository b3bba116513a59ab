"""Adapters that are registered with what they were trained on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from tests.app.conftest import post_adapter, record, upload

RECIPE: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 3}
RECORDS = (record("Ada"), record("Bob"))


@pytest.fixture
async def base(client: httpx.AsyncClient, model_directory: Path) -> None:
    """The registered base model "acme/tiny"."""
    await client.post("/base-models", json={"name": "acme/tiny", "source": model_directory.name})


async def register(client: httpx.AsyncClient, dataset: str, recipe: Any = RECIPE) -> httpx.Response:
    """Upload an adapter with its training set."""
    return await post_adapter(client, training_set=dataset, recipe=json.dumps(recipe))


async def test_an_adapter_shows_its_training_set_and_recipe_with_every_knob(
    client: httpx.AsyncClient, base: None
) -> None:
    dataset = await upload(client, "training", *RECORDS)
    response = await register(client, dataset)
    assert response.status_code == 201, response.text
    shown = (await client.get("/adapters/support-bot")).json()
    assert (shown["training_set"], shown["unmatched_records"]) == (dataset, 0)
    assert shown["recipe"] | RECIPE == shown["recipe"]
    assert (shown["recipe"]["steps"], shown["recipe"]["supervised"]) == (None, "answer")
    chain = (await client.get("/audit?action=adapter.registered")).json()["data"]
    assert chain[0]["data"]["training_set"] == dataset


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"recipe": "{}"}, "/training_set"),
        ({"training_set": "ours"}, "/recipe"),
        ({"training_set": "ours", "recipe": "no JSON"}, "/recipe"),
        ({"training_set": "ours", "recipe": '{"learning_rate": 1e-3}'}, "/recipe"),
        ({"training_set": "ours", "recipe": '{"learning_rate": 1e-3, "epochs": 1, "steps": 1}'}, "/recipe"),
        ({"training_set": "ours", "recipe": '{"learning_rate": 7, "epochs": 1}'}, "/recipe/learning_rate"),
        ({"training_set": "ours", "recipe": '{"learning_rate": 1e-3, "epochs": 1, "x": 1}'}, "/recipe/x"),
        ({"training_set": "ds_0", "recipe": json.dumps(RECIPE)}, "/training_set"),
        ({"training_set": "retain", "recipe": json.dumps(RECIPE)}, "/training_set"),
        ({"training_set": "theirs", "recipe": json.dumps(RECIPE)}, "/training_set"),
    ],
)
async def test_what_is_no_training_set_with_a_recipe_is_refused_where_it_is_wrong(
    client: httpx.AsyncClient, foreign: httpx.AsyncClient, base: None, fields: dict[str, Any], pointer: str
) -> None:
    ids = {
        "ours": await upload(client, "training", *RECORDS),
        "retain": await upload(client, "retain", *RECORDS),
        "theirs": await upload(foreign, "training", *RECORDS),
    }
    if (named := fields.get("training_set")) is not None:
        fields = fields | {"training_set": ids.get(named, named)}
    response = await post_adapter(client, **fields)
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, pointer)
    assert (await client.get("/adapters/support-bot")).status_code == 404


async def test_a_training_set_is_no_set_of_a_job(client: httpx.AsyncClient, adapter: str) -> None:
    dataset = await upload(client, "training", *RECORDS)
    for purpose in ("forget", "retain"):
        body = {"adapter": adapter, "forget_set": {"records": [record("Eve")]}, "retain_set": dataset}
        response = await client.post("/unlearn-jobs", json=body | {f"{purpose}_set": dataset})
        assert (response.status_code, "is a training set" in response.json()["detail"]) == (422, True)


async def test_what_an_adapter_holds_is_not_purged_by_its_id(client: httpx.AsyncClient, base: None) -> None:
    dataset = await upload(client, "training", *RECORDS)
    await register(client, dataset)
    response = await client.delete(f"/datasets/{dataset}")
    assert response.status_code == 409
    assert "/adapters/support-bot/training-set" in response.json()["detail"]


async def test_a_training_set_is_dropped_by_its_tenant_alone_and_destroyed_with_a_receipt(
    client: httpx.AsyncClient, foreign: httpx.AsyncClient, base: None, engine: Engine
) -> None:
    dataset = await upload(client, "training", *RECORDS)
    await register(client, dataset)
    assert (await foreign.delete("/adapters/support-bot/training-set")).status_code == 404
    for _ in range(2):
        assert (await client.delete("/adapters/support-bot/training-set")).status_code == 204
    shown = (await client.get("/adapters/support-bot")).json()
    assert (shown["training_set"], shown["head"]) == (None, 1)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT wrapped_key, purged_at IS NULL FROM datasets")).one() == (None, False)
    entries = (await client.get(f"/audit?subject={shown['id']}")).json()["data"]
    assert [entry["action"] for entry in entries] == ["adapter.training_set", "adapter.registered"]
    assert (await client.get(f"/audit?subject={dataset}")).json()["data"][0]["action"] == "dataset.purged"


async def test_what_another_adapter_holds_too_is_kept_when_one_drops_it(
    client: httpx.AsyncClient, base: None
) -> None:
    dataset = await upload(client, "training", *RECORDS)
    await register(client, dataset)
    await post_adapter(client, name="other-bot", training_set=dataset, recipe=json.dumps(RECIPE))
    await client.delete("/adapters/support-bot/training-set")
    assert (await client.get(f"/datasets/{dataset}")).json()["purged_at"] is None
    await client.delete("/adapters/other-bot/training-set")
    assert (await client.get(f"/datasets/{dataset}")).json()["purged_at"] is not None
