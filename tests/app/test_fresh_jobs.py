"""Jobs on a base model: a fresh LoRA is begun, and its name reserved."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from app.adapters.tables import Adapter
from app.jobs import transitions
from app.jobs.tables import Run, UnlearnJob
from tests.app.conftest import post_adapter, post_job, record, upload
from tests.app.tiny import MODULE

pytestmark = pytest.mark.usefixtures("adapter")
BASE, NAME = "acme/tiny", "forgetful"


async def post_fresh(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    """Ask for a job that begins an adapter."""
    return await post_job(client, **{"adapter": None, "base_model": BASE, "result_adapter": NAME, **body})


def end(engine: Engine, job: dict[str, Any], status: str) -> None:
    """End a job as a worker does, without a result."""
    with Session(engine) as session, session.begin():
        session.execute(update(Run).where(Run.id == job["run_id"]).values(status=status))
        session.execute(transitions.follow(job["run_id"], status))


def release(engine: Engine, job: dict[str, Any]) -> None:
    """What a release leaves behind, as far as the web side's answers depend on it."""
    end(engine, job, "succeeded")
    with Session(engine) as session, session.begin():
        session.execute(update(Adapter).where(Adapter.name == job["adapter"]).values(head=1))


def stored(engine: Engine) -> tuple[int, int]:
    """How many adapters and jobs there are."""
    with Session(engine) as session:
        tables = (Adapter, UnlearnJob)
        return tuple(session.scalar(select(func.count()).select_from(one)) or 0 for one in tables)  # type: ignore[return-value]


def pointers(answer: httpx.Response) -> list[str]:
    """The fields that a 422 is about."""
    assert answer.status_code == 422, answer.text
    return [error["pointer"] for error in answer.json()["errors"]]


async def test_without_a_key_nothing_is_begun(anonymous: httpx.AsyncClient) -> None:
    assert (await post_fresh(anonymous)).status_code == 401


async def test_another_tenants_base_model_is_not_there_and_its_names_are_free(
    client: httpx.AsyncClient, foreign: httpx.AsyncClient, engine: Engine
) -> None:
    assert (await post_fresh(client)).status_code == 202
    assert pointers(await post_fresh(foreign)) == ["/base_model"]
    assert stored(engine) == (2, 1)


async def test_a_job_on_a_base_model_shows_every_knob(client: httpx.AsyncClient) -> None:
    answer = await post_fresh(client)
    assert answer.status_code == 202, answer.text
    job = answer.json()
    assert (job["adapter"], job["base_model"], job["source_version"]) == (NAME, BASE, None)
    assert job["lora"] == {"rank": 16, "alpha": 32.0, "target_modules": "all-linear"}
    assert job["method"]["anchor"] == "none"
    policy = job["policy"]
    assert policy["name"] == "default.base_knows"
    assert (policy["max_forget_nll_excess"], policy["max_membership_auc_distance"]) == (None, None)
    assert policy["max_forget_probability"] == 0.2
    assert (await client.get(answer.headers["location"])).json() == job


async def test_the_shape_can_be_chosen(client: httpx.AsyncClient) -> None:
    shape = {"rank": 4, "alpha": 6.0, "target_modules": ["q_proj", MODULE]}
    assert (await post_fresh(client, lora=shape)).json()["lora"] == shape
    other = await post_fresh(client, result_adapter="other", lora={"rank": 4})
    assert other.json()["lora"] == {"rank": 4, "alpha": 8.0, "target_modules": "all-linear"}


@pytest.mark.parametrize(
    ("lora", "pointer"),
    [
        ({"rank": 0}, "/lora/rank"),
        ({"rank": 513}, "/lora/rank"),
        ({"alpha": 0}, "/lora/alpha"),
        ({"dropout": 0.1}, "/lora/dropout"),
        ({"target_modules": ["q_proj", "k_proj"]}, "/lora/target_modules/1"),
    ],
)
async def test_a_shape_that_cannot_be_is_refused(
    client: httpx.AsyncClient, engine: Engine, lora: dict[str, Any], pointer: str
) -> None:
    assert pointers(await post_fresh(client, lora=lora)) == [pointer]
    assert stored(engine) == (1, 0)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"base_model": None, "result_adapter": None}, ["/adapter"]),
        ({"base_model": None}, ["/base_model"]),
        ({"result_adapter": None}, ["/result_adapter"]),
        ({"adapter": "support-bot"}, ["/base_model", "/result_adapter"]),
        ({"adapter": "support-bot", "base_model": None, "result_adapter": None, "lora": {}}, ["/lora"]),
        ({"base_model": "acme/unknown"}, ["/base_model"]),
        ({"method": {"anchor": "base"}}, ["/method/anchor"]),
        ({"control": "support-bot"}, ["/control"]),
        ({"policy": {"max_forget_nll_excess": 0.5}}, ["/policy/max_forget_nll_excess"]),
        ({"retain_set": None}, ["/retain_set"]),
    ],
)
async def test_what_does_not_go_together_is_told_by_field(
    client: httpx.AsyncClient, engine: Engine, body: dict[str, Any], expected: list[str]
) -> None:
    assert pointers(await post_fresh(client, **body)) == expected
    assert stored(engine) == (1, 0)


async def test_the_audit_policy_needs_no_holdout_set_here(client: httpx.AsyncClient) -> None:
    policy = (await post_fresh(client, policy="audit")).json()["policy"]
    assert (policy["name"], policy["max_relearned_excess"]) == ("audit.base_knows", None)
    assert policy["max_resurfaced_probability"] == 0.15


async def test_a_dry_run_reserves_nothing(client: httpx.AsyncClient, engine: Engine) -> None:
    body = {"base_model": BASE, "result_adapter": NAME, "forget_set": {"records": [record("Ada")]},
            "retain_set": {"records": [record("Bob")]}}  # fmt: skip
    plan = (await client.post("/unlearn-jobs?dry_run=true", json=body)).json()
    assert (plan["adapter"], plan["base_model"], plan["source_version"]) == (NAME, BASE, None)
    assert (plan["lora"]["rank"], plan["method"]["anchor"]) == (16, "none")
    assert "membership_not_judged" in {warning["code"] for warning in plan["warnings"]}
    assert stored(engine) == (1, 0)


async def test_until_it_has_a_version_the_adapter_is_not_there(client: httpx.AsyncClient) -> None:
    job = (await post_fresh(client)).json()
    for path in ("", "/versions", "/versions/head", "/versions/1/download", "/lineage", "/aliases"):
        assert (await client.get(f"/adapters/{NAME}{path}")).status_code == 404, path
    assert [each["name"] for each in (await client.get("/adapters")).json()["data"]] == ["support-bot"]
    assert pointers(await post_job(client, adapter=NAME)) == ["/adapter"]
    assert (await client.get(f"/unlearn-jobs/{job['id']}/adapter")).status_code == 409
    assert [each["id"] for each in (await client.get(f"/unlearn-jobs?adapter={NAME}")).json()["data"]] == [job["id"]]


async def test_a_name_is_held_by_one_job(client: httpx.AsyncClient, engine: Engine) -> None:
    first = await post_fresh(client)
    second = await post_fresh(client)
    assert (second.status_code, second.headers["location"]) == (409, first.headers["location"])
    assert (await post_adapter(client, name=NAME)).status_code == 409
    assert (await post_fresh(client, result_adapter="support-bot")).status_code == 409
    assert stored(engine) == (2, 1)


async def test_of_requests_at_once_one_gets_the_name(client: httpx.AsyncClient, engine: Engine) -> None:
    # The name has its row already, so that no request waits for another one to make it.
    end(engine, (await post_fresh(client)).json(), "failed")
    forget, retain = await upload(client, "forget", record("Ada")), await upload(client, "retain", record("Bob"))
    answers = await asyncio.gather(*(post_fresh(client, forget_set=forget, retain_set=retain) for _ in range(12)))
    assert sorted(answer.status_code for answer in answers) == [202, *[409] * 11]
    assert stored(engine) == (2, 2)


async def test_a_persons_request_is_told_its_job(client: httpx.AsyncClient, engine: Engine) -> None:
    first = await post_fresh(client, subject_request_id="dsr-1")
    for _ in range(2):
        again = await post_fresh(client, subject_request_id="dsr-1")
        assert (again.status_code, again.json()["code"]) == (409, "duplicate_request")
        assert again.headers["location"] == first.headers["location"]
        release(engine, first.json())


@pytest.mark.parametrize("status", ["failed", "gate_failed", "cancelled"])
async def test_after_a_failure_the_name_is_free_for_another_job(
    client: httpx.AsyncClient, engine: Engine, status: str
) -> None:
    first = (await post_fresh(client)).json()
    end(engine, first, status)
    second = await post_fresh(client)
    assert second.status_code == 202
    # Two would begin the same adapter.
    retried = await client.post(f"/unlearn-jobs/{first['id']}/retry")
    assert (retried.status_code, retried.json()["code"]) == (409, "conflict")
    end(engine, second.json(), status)
    assert (await client.post(f"/unlearn-jobs/{first['id']}/retry")).status_code == 202


async def test_a_job_is_not_retried_once_another_made_the_first_version(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    first = (await post_fresh(client)).json()
    end(engine, first, "failed")
    release(engine, (await post_fresh(client)).json())
    assert (await client.post(f"/unlearn-jobs/{first['id']}/retry")).status_code == 409
    assert (await post_fresh(client)).status_code == 409


async def test_later_jobs_on_the_adapter_know_that_the_base_model_knows(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    release(engine, (await post_fresh(client)).json())
    later = (await post_job(client, adapter=NAME)).json()
    assert (later["base_model"], later["lora"], later["method"]["anchor"]) == (None, None, "none")
    assert later["policy"]["name"] == "default.base_knows"
    assert pointers(await post_job(client, adapter=NAME, method={"anchor": "base"})) == ["/method/anchor"]
    assert pointers(await post_job(client, adapter=NAME, control="support-bot")) == ["/control"]


async def test_a_name_on_another_base_model_is_refused(client: httpx.AsyncClient, engine: Engine) -> None:
    twin = {"name": "acme/twin", "source": "tiny"}
    assert (await client.post("/base-models", json=twin)).status_code == 201
    end(engine, (await post_fresh(client)).json(), "failed")
    assert (await post_fresh(client, base_model="acme/twin")).status_code == 409
