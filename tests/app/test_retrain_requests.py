"""Requests to train anew, or to leave the choice to the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from app.methods import METHOD_REQUEST, sequences_per_step
from tests.app.conftest import post_adapter, post_job, record, upload

RECIPE: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 2, "seed": 11}
ANEW: dict[str, Any] = {"type": "retrain"}
AUTO: dict[str, Any] = {"type": "auto"}


@pytest.fixture
async def base(client: httpx.AsyncClient, model_directory: Path) -> None:
    """The registered base model "acme/tiny"."""
    await client.post("/base-models", json={"name": "acme/tiny", "source": model_directory.name})


async def register(client: httpx.AsyncClient, *names: str, **recipe: Any) -> str:
    """An adapter that was trained on a record of each name; its training set."""
    dataset = await upload(client, "training", *map(record, names))
    response = await post_adapter(client, training_set=dataset, recipe=json.dumps(RECIPE | recipe))
    assert response.status_code == 201, response.text
    return dataset


def forget(*names: str) -> dict[str, Any]:
    """A set of these names' records."""
    return {"records": [record(name) for name in names]}


async def plan(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """The plan of a request."""
    sets = {"forget_set": forget("Ada"), "retain_set": forget("Bob")}
    response = await client.post("/unlearn-jobs?dry_run=true", json={"adapter": "support-bot", **sets, **body})
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def unlearning(forget_records: int, retain_records: int) -> dict[str, int]:
    """What the default method costs on so few records."""
    method = METHOD_REQUEST.validate_python({}).resolve(forget_records)
    each = sequences_per_step(method.schedule, method.steps, forget_records, retain_records)
    return {"steps": method.steps, "sequences": round(method.steps * each)}


async def test_a_job_that_trains_anew_shows_the_recipe_and_what_it_costs(
    client: httpx.AsyncClient, base: None
) -> None:
    await register(client, "Ada", "Bob", "Cleo", "Ada", "Dov")
    planned = await plan(client, method=ANEW)
    answer = await post_job(client, method=ANEW)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    method = job["method"]
    # Of five records one is a second Ada, which only the worker sees when it takes them out.
    assert method | RECIPE | {"type": "retrain", "steps": 6} == method
    assert (method["supervised"], method["micro_batch_size"], "forget_loss" in method) == ("answer", "auto", False)
    assert (job["exact"], planned["method"], planned["costs"]) == (None, method, job["costs"])
    costs = job["costs"]
    assert (costs["asked"], costs["forget_records"], costs["found"], costs["training_records"]) == (
        "retrain",
        1,
        1,
        5,
    )
    assert (costs["retrain"], costs["unlearn"]) == ({"steps": 6, "sequences": 12}, unlearning(1, 1))
    assert (costs["measured"], costs["exact_if_cheaper_than"]) == (None, 2.0)
    assert planned["estimate"]["steps"] == {"low": 6, "high": 6}
    assert (await client.get(answer.headers["location"])).json() == job
    accepted = (await client.get("/audit?action=job.accepted")).json()["data"]
    assert accepted[0]["data"]["method"] == "retrain"


@pytest.mark.parametrize(
    ("held", "asked", "values", "reason"),
    [
        ([], ["Ada"], "", "holds no training set"),
        (["Bob"], ["Ada"], "", "no forget record is in"),
        (["Ada"], ["Ada"], "", "nothing would be left"),
        (["Ada", "Bob"], ["Ada"], "unmatched_records = 3", "unlearned 3 record(s)"),
    ],
)
async def test_where_nothing_can_be_trained_anew_that_is_refused_and_auto_unlearns_and_says_why(
    client: httpx.AsyncClient,
    base: None,
    engine: Engine,
    held: list[str],
    asked: list[str],
    values: str,
    reason: str,
) -> None:
    await (register(client, *held) if held else post_adapter(client))
    if values:
        with engine.begin() as connection:
            connection.execute(text(f"UPDATE adapters SET {values}"))  # noqa: S608 - from above
    response = await post_job(client, forget_set=forget(*asked), retain_set=forget("Eve"), method=ANEW)
    problem = response.json()
    assert (response.status_code, problem["code"]) == (422, "cannot_retrain")
    assert (problem["errors"][0]["pointer"], reason in problem["detail"]) == ("/method", True)
    job = (await post_job(client, forget_set=forget(*asked), retain_set=forget("Eve"), method=AUTO)).json()
    assert (job["method"]["type"], job["costs"]["asked"], job["exact"]) == ("blur", "auto", False)
    assert (reason in job["costs"]["reason"], job["costs"]["retrain"]) == (True, None)


async def test_auto_takes_the_exact_way_up_to_the_policys_ratio(client: httpx.AsyncClient, base: None) -> None:
    await register(client, "Ada", "Bob", "Cleo")
    costs = (await plan(client, method=AUTO))["costs"]
    ratio = costs["retrain"]["sequences"] / costs["unlearn"]["sequences"]
    assert costs["retrain"] == {"steps": 3, "sequences": 6}
    for limit, chosen in ((ratio * 1.01, "retrain"), (ratio * 0.99, "blur"), (0, "blur")):
        found = await plan(client, method=AUTO, policy={"exact_if_cheaper_than": limit})
        assert found["method"]["type"] == chosen
        assert f"6 sequences against {costs['unlearn']['sequences']}" in found["costs"]["reason"]
    default = await plan(client)
    assert (found["method"], default["costs"]) == (default["method"], None)
    job = (await post_job(client, method=AUTO)).json()
    assert (job["method"]["type"], job["costs"]["asked"], job["exact"]) == ("retrain", "auto", None)


async def test_records_that_were_not_trained_on_are_warned_of_and_make_auto_unlearn(
    client: httpx.AsyncClient, base: None
) -> None:
    await register(client, "Ada", "Bob", "Cleo")
    body = {"forget_set": forget("Ada", "Ada", "Zoe"), "retain_set": forget("Bob")}
    planned = await plan(client, method=ANEW, **body)
    assert planned["method"]["type"] == "retrain"
    (warning,) = [each for each in planned["warnings"] if each["code"] == "not_exact"]
    assert "1 of 2 forget records" in warning["message"]
    planned = await plan(client, method=AUTO, **body)
    assert (planned["method"]["type"], planned["costs"]["found"]) == ("blur", 1)
    assert "would not be exact" in planned["costs"]["reason"]


async def test_steps_of_a_recipe_are_taken_as_they_are(client: httpx.AsyncClient, base: None) -> None:
    await register(client, "Ada", "Bob", "Cleo", "Dov", epochs=None, steps=10)
    found = await plan(client, method={"type": "retrain", "micro_batch_size": 1})
    assert (found["method"]["steps"], found["method"]["micro_batch_size"]) == (10, 1)
    assert found["costs"]["retrain"] == {"steps": 10, "sequences": 15}  # three records in two batches


async def test_knobs_of_the_recipe_are_not_the_requests(client: httpx.AsyncClient, base: None) -> None:
    await register(client, "Ada", "Bob")
    for method in (ANEW | {"learning_rate": 1e-4}, AUTO | {"steps": 3}):
        response = await post_job(client, method=method)
        assert response.status_code == 422
        assert response.json()["errors"][0]["pointer"] == f"/method/{list(method)[1]}"


async def test_a_training_set_that_a_live_job_needs_is_not_dropped(client: httpx.AsyncClient, base: None) -> None:
    await register(client, "Ada", "Bob")
    job = (await post_job(client, method=ANEW)).json()
    response = await client.delete("/adapters/support-bot/training-set")
    assert (response.status_code, job["id"] in response.json()["detail"]) == (409, True)
    await client.post(f"/unlearn-jobs/{job['id']}/cancel")
    assert (await client.delete("/adapters/support-bot/training-set")).status_code == 204


async def test_what_a_base_model_knows_is_unlearned_whoever_chooses(client: httpx.AsyncClient, base: None) -> None:
    body = {
        "base_model": "acme/tiny",
        "result_adapter": "fresh",
        "forget_set": forget("Ada"),
        "retain_set": forget("Bob"),
    }
    response = await client.post("/unlearn-jobs", json=body | {"method": ANEW})
    assert (response.status_code, response.json()["code"]) == (422, "cannot_retrain")
    job = (await client.post("/unlearn-jobs", json=body | {"method": AUTO})).json()
    assert (job["method"]["type"], job["method"]["anchor"]) == ("blur", "none")
