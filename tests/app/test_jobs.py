"""Accepting, finding and steering jobs. No worker runs here: what a worker would do is written by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, select, text, update
from sqlalchemy.orm import Session

from app import outbox
from app.adapters.tables import Adapter
from app.base_models.tables import BaseModelRow
from app.datasets.tables import Dataset
from app.evaluations.tables import EvaluationRow
from app.jobs import transitions
from app.jobs.tables import OutboxMessage, Run, UnlearnJob
from app.methods import (
    DEFAULT_POLICY,
    FORGET_LOSSES,
    METHOD_REQUESTS,
    POLICIES,
    PROBES,
    RETAIN_LOSSES,
    STOP_RULES,
    UNLEARNING_REQUESTS,
    BlurRequest,
)
from app.settings import Settings
from tests.app import tiny
from tests.app.conftest import post_adapter, post_job, record, upload

pytestmark = pytest.mark.usefixtures("adapter")
MARKER = "Zanzibar-Quux-4711"


def claim(engine: Engine, run_id: str) -> None:
    """What a worker does first."""
    with Session(engine) as session, session.begin():
        assert session.scalars(transitions.claim(run_id, "w", timedelta(seconds=60))).one()
        session.execute(transitions.follow(run_id, "running")).all()


async def new_job(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """An accepted job."""
    response = await post_job(client, **body)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


async def test_an_accepted_job_shows_every_knob(client: httpx.AsyncClient) -> None:
    response = await post_job(client, requested_at="2026-01-31T12:00:00Z", metadata={"case": "7"}, seed=7)
    assert response.status_code == 202
    job = response.json()
    assert response.headers["location"] == f"/unlearn-jobs/{job['id']}"
    assert int(response.headers["retry-after"]) > 0
    assert (job["object"], job["status"], job["phase"]) == ("unlearn_job", "queued", None)
    assert (job["adapter"], job["source_version"], job["result_version"], job["attempt"]) == (
        "support-bot",
        None,
        None,
        0,
    )
    assert job["method"] == BlurRequest().resolve(1).model_dump()
    assert job["policy"] == DEFAULT_POLICY.model_dump(mode="json")
    assert job["control"] is None
    assert (job["seed"], job["metadata"], job["verdict"], job["error"]) == (7, {"case": "7"}, None, None)
    assert job["due_at"] == "2026-02-28T12:00:00Z"
    assert job["progress"]["queue_position"] == 1
    assert (await client.get(f"/unlearn-jobs/{job['id']}")).json() == job


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"requested_at": "2020-01-31T12:00:00Z"},
        {"requested_at": "2020-01-31T23:30:00-02:00"},
        {"policy": {"requires_approval": True}},
    ],
)
async def test_the_answer_is_the_job_as_it_is_read(client: httpx.AsyncClient, body: dict[str, Any]) -> None:
    await new_job(client)
    job = await new_job(client, **body, metadata={"case": "7"})
    assert job == (await client.get(f"/unlearn-jobs/{job['id']}")).json()


async def test_jobs_with_the_same_retain_set_do_not_wait_for_each_other(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    retain = await upload(client, "retain", record("Bob"))
    with engine.connect() as other:
        # What another transaction holds that accepts a job.
        other.execute(text("SELECT id FROM datasets FOR SHARE"))
        async with asyncio.timeout(30):
            await new_job(client, retain_set=retain)


async def test_a_set_is_not_purged_while_its_job_is_accepted(client: httpx.AsyncClient, engine: Engine) -> None:
    retain = await upload(client, "retain", record("Bob"))
    with engine.connect() as other:
        other.execute(text("UPDATE datasets SET wrapped_key = NULL, purged_at = now()"))
        asked = asyncio.create_task(post_job(client, retain_set=retain))
        while not asked.done() and not other.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")):
            await asyncio.sleep(0.01)
        other.commit()
    assert (await asked).json()["errors"][0]["detail"].startswith("was purged")


async def test_job_run_event_and_message_are_stored_together(client: httpx.AsyncClient, engine: Engine) -> None:
    job = await new_job(client)
    with Session(engine) as session:
        message = session.scalars(select(OutboxMessage)).one()
    assert (message.task, message.queue, message.argument) == (outbox.RUN_TASK, outbox.GPU_QUEUE, job["run_id"])
    events = (await client.get(f"/unlearn-jobs/{job['id']}/events")).json()["data"]
    assert [event["message"] for event in events] == ["accepted"]


async def test_inline_records_become_datasets(client: httpx.AsyncClient) -> None:
    job = await new_job(client)
    forget = (await client.get(f"/datasets/{job['forget_set']}")).json()
    assert (forget["purpose"], forget["records"]) == ("forget", 1)


async def test_a_seed_is_drawn_and_shown(client: httpx.AsyncClient) -> None:
    seeds = {(await new_job(client))["seed"] for _ in range(3)}
    assert len(seeds) > 1


async def test_steps_follow_the_size_of_the_forget_set(client: httpx.AsyncClient) -> None:
    records = [record(f"Name {number}") for number in range(50)]
    job = await new_job(client, forget_set={"records": records}, method={"forget_batch_size": 1})
    assert job["method"]["steps"] == BlurRequest(forget_batch_size=1).resolve(50).steps
    assert job["method"]["steps"] > BlurRequest(forget_batch_size=1).resolve(1).steps


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"adapter": "nobody"}, "/adapter"),
        ({"adapter": "Not A Name"}, "/adapter"),
        ({"colour": "red"}, "/colour"),
        ({"forget_set": "ds_none"}, "/forget_set"),
        ({"retain_set": None}, "/retain_set"),
        ({"holdout_set": "ds_none"}, "/holdout_set"),
        ({"forget_set": {"records": []}}, "/forget_set/records"),
        ({"forget_set": {"records": [{"prompt": MARKER}]}}, "/forget_set/records/0"),
        ({"forget_set": {"records": [record("Ada"), 7]}}, "/forget_set/records/1"),
        ({"method": {"type": "magic"}}, "/method/type"),
        ({"method": {"type": 7}}, "/method/type"),
        ({"method": {"type": None}}, "/method/type"),
        ({"method": None}, "/method"),
        ({"method": "blur"}, "/method"),
        ({"method": {"blur": 1}}, "/method/blur"),
        ({"method": {"type": "pdu", "gamma": 1}}, "/method/gamma"),
        ({"method": {"steps": 0}}, "/method/steps"),
        ({"method": {"passes": "three"}}, "/method/passes"),
        ({"method": {"stop": {"every": 0}}}, "/method/stop/every"),
        ({"method": {"stop": {"type": "never"}}}, "/method/stop/type"),
        ({"method": {"forget_loss": {"type": "simpo"}}}, "/method/forget_loss/type"),
        ({"method": {"forget_loss": "npo"}}, "/method/forget_loss"),
        ({"method": {"forget_loss": {"beta": 0}}}, "/method/forget_loss/beta"),
        (
            {"method": {"type": "weighted_sum", "forget_loss": {"type": "simnpo", "delta": -1}}},
            "/method/forget_loss/delta",
        ),
        # A field that is called like the member of the union that it is in.
        ({"method": {"forget_loss": {"npo": 1, "beta": 0}}}, "/method/forget_loss/beta"),
        ({"method": {"forget_loss": {"npo": 1}}}, "/method/forget_loss/npo"),
        ({"method": {"retain_loss": {"type": "kl", "beta": 1}}}, "/method/retain_loss/beta"),
        ({"method": {"gamma": -1}}, "/method/gamma"),
        ({"method": {"learning_rate": "fast"}}, "/method/learning_rate"),
        ({"method": {"forget_loss": {"type": "npo", "beta": 0}}}, "/method/forget_loss/beta"),
        ({"policy": "lenient"}, "/policy"),
        ({"policy": {"max_forget_probability": 0.9}}, "/policy/max_forget_probability"),
        ({"policy": {"min_retain_probability_ratio": 0.5}}, "/policy/min_retain_probability_ratio"),
        ({"policy": {"training_max_forget_probability": 0.9}}, "/policy/training_max_forget_probability"),
        ({"policy": {"training_min_retain_probability_ratio": 0}}, "/policy/training_min_retain_probability_ratio"),
        ({"policy": {"max_smell": 1}}, "/policy/max_smell"),
        ({"policy": {"name": "mine"}}, "/policy/name"),
        ({"policy": {"name": ["audit"]}}, "/policy/name"),
        ({"policy": {"version": 9}}, "/policy/version"),
        ({"policy": {"description": MARKER}}, "/policy/description"),
        ({"policy": {"probes": ["recall"]}}, "/policy/probes"),
        ({"policy": {"probes": ["smell"]}}, "/policy/probes"),
        ({"policy": {"max_attempts": 5}}, "/policy/max_attempts"),
        ({"policy": {"max_membership_auc_distance": None}}, "/policy/max_membership_auc_distance"),
        ({"policy": {"name": "audit", "max_membership_auc_distance": 0.2}}, "/policy/max_membership_auc_distance"),
        ({"control": "nobody"}, "/control"),
        ({"control": "support-bot"}, "/control"),
        ({"control": "support-bot@0"}, "/control"),
        ({"control": f"{MARKER}@x"}, "/control"),
        ({"seed": -1}, "/seed"),
        ({"seed": MARKER}, "/seed"),
        ({"adapter": MARKER}, "/adapter"),
        ({"metadata": {"k": [MARKER]}}, "/metadata/k"),
        ({"method": {"schedule": {"type": "cycles", "cycles": 1000, "forget_steps": 1000}}}, "/method"),
        ({"requested_at": "yesterday"}, "/requested_at"),
        ({"requested_at": "2026-01-01T00:00:00"}, "/requested_at"),
        ({"requested_at": "9999-12-31T00:00:00Z"}, "/requested_at"),
        ({"requested_at": "0001-01-01T00:00:00+12:00"}, "/requested_at"),
        ({"requested_at": "1999-12-31T00:00:00Z"}, "/requested_at"),
        ({"requested_at": 0}, "/requested_at"),
        ({"metadata": {"k": 1}}, "/metadata/k"),
        ({"metadata": {str(n): "v" for n in range(17)}}, "/metadata"),
        ({"metadata": {"k": "a\x00b"}}, "/metadata/k"),
        ({"subject_request_id": "a\x00b"}, "/subject_request_id"),
        ({"forget_set": "a\x00b"}, "/forget_set"),
        ({"\ud800": 1}, ""),
        ({"subject_request_id": "\ud800"}, "/subject_request_id"),
        ({"metadata": {"\ud800": "v"}}, "/metadata"),
        ({"policy": {"\ud800": 1}}, "/policy/"),
        ({"forget_set": {"records": [record("\ud800")]}}, "/forget_set/records/0"),
    ],
)
async def test_a_bad_request_names_the_field_and_stores_nothing(
    client: httpx.AsyncClient, engine: Engine, settings: Settings, body: dict[str, Any], pointer: str
) -> None:
    response = await post_job(client, **body)
    assert response.status_code == 422, response.text
    assert pointer in [error["pointer"] for error in response.json()["errors"]], response.text
    assert MARKER not in response.text
    with engine.connect() as connection:
        tables = ("runs", "unlearn_jobs", "job_events", "outbox", "datasets")
        counts = [connection.scalar(text(f"SELECT count(*) FROM {table}")) for table in tables]  # noqa: S608
    assert counts == [0, 0, 0, 0, 0]
    assert not [path for path in settings.storage_dir.rglob("datasets/**/*") if path.is_file()]


@pytest.mark.parametrize(
    ("method", "known"),
    [
        ({"type": MARKER}, METHOD_REQUESTS),
        ({"forget_loss": {"type": MARKER}}, FORGET_LOSSES),
        ({"retain_loss": MARKER}, RETAIN_LOSSES),
        ({"stop": {"type": MARKER}}, STOP_RULES),
    ],
)
async def test_an_unknown_type_names_the_known_ones_and_not_what_was_sent(
    client: httpx.AsyncClient, method: dict[str, Any], known: dict[str, Any]
) -> None:
    response = await post_job(client, method=method)
    assert [name for name in known if f"'{name}'" not in response.json()["detail"]] == []
    assert MARKER not in response.text


@pytest.mark.parametrize("name", UNLEARNING_REQUESTS)
async def test_every_method_is_accepted_with_every_loss(client: httpx.AsyncClient, name: str) -> None:
    for forget_loss in FORGET_LOSSES:
        job = await new_job(client, method={"type": name, "forget_loss": {"type": forget_loss}})
        assert (job["method"]["type"], job["method"]["forget_loss"]["type"]) == (name, forget_loss)
        assert "auto" not in (job["method"]["steps"], job["method"].get("gamma"))


# As version 0.1 stored them, word for word.
OLD_METHOD = {
    "type": "blur", "forget_loss": {"type": "npo", "beta": 0.03}, "retain_loss": {"type": "nll"},
    "projection": "raw", "scope": "global", "forget_batch_size": 8, "retain_batch_size": 8, "micro_batch_size": 8,
    "learning_rate": 0.0005, "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0, "max_length": 512,
    "gamma": 0.05, "steps": 80,
}  # fmt: skip
OLD_POLICY = {
    "name": "default", "version": 1, "max_forget_probability": 0.2, "max_forget_extraction_strength": 0.1,
    "max_forget_rouge_l_recall": 0.45, "min_retain_probability_ratio": 0.9, "min_retain_rouge_l_recall_ratio": 0.9,
}  # fmt: skip


async def test_a_job_of_version_0_1_is_shown_as_it_was_run(client: httpx.AsyncClient, engine: Engine) -> None:
    job_id = (await new_job(client))["id"]
    with Session(engine) as session, session.begin():
        row = session.get_one(UnlearnJob, job_id)
        row.method, row.policy = OLD_METHOD, OLD_POLICY
    job = (await client.get(f"/unlearn-jobs/{job_id}")).json()
    assert {name: job["method"][name] for name in OLD_METHOD if name != "forget_loss"} == {
        name: value for name, value in OLD_METHOD.items() if name != "forget_loss"
    }
    assert job["method"]["forget_loss"] == {"type": "npo", "beta": 0.03, "per_token": False}
    # It took every step, whatever the default of today.
    assert (job["method"]["stop"], job["method"]["gamma_scale"]) == ({"type": "steps"}, "absolute")
    assert {name: job["policy"][name] for name in OLD_POLICY} == OLD_POLICY


async def test_sets_of_the_wrong_purpose_are_refused(client: httpx.AsyncClient) -> None:
    retain = await upload(client, "retain", record("Ada"))
    problem = (await post_job(client, forget_set=retain)).json()
    assert problem["errors"][0]["pointer"] == "/forget_set"
    assert "retain set" in problem["detail"]


async def test_a_purged_set_is_refused(client: httpx.AsyncClient) -> None:
    forget = await upload(client, "forget", record("Ada"))
    await client.delete(f"/datasets/{forget}")
    assert "purged" in (await post_job(client, forget_set=forget)).json()["detail"]


@pytest.mark.parametrize("field", ["retain_set", "holdout_set"])
async def test_sets_that_share_records_are_refused(client: httpx.AsyncClient, field: str) -> None:
    forget = await upload(client, "forget", record("Ada"), record("Eve"))
    # The same text under another id is the same record.
    other = await upload(client, field.removesuffix("_set"), record("Bob"), {"id": "9", **record("Eve")})
    response = await post_job(client, forget_set=forget, **{field: other})
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {
            "pointer": f"/{field}",
            "detail": "shares 1 record(s) with the forget set, at its line 2; take them out of one of the two",
        }
    ]


async def test_inline_records_of_a_refused_request_leave_no_bytes(
    client: httpx.AsyncClient, settings: Settings
) -> None:
    same = {"records": [record("Ada")]}
    assert (await post_job(client, forget_set=same, retain_set=same)).status_code == 422
    assert not [path for path in settings.storage_dir.rglob("datasets/**/*") if path.is_file()]


async def test_an_adapters_default_retain_set_is_used(client: httpx.AsyncClient) -> None:
    retain = await upload(client, "retain", record("Bob"))
    assert (await post_adapter(client, name="with-default", retain_set=retain)).status_code == 201
    job = await new_job(client, adapter="with-default", retain_set=None)
    assert job["retain_set"] == retain


async def test_a_policy_may_be_tightened(client: httpx.AsyncClient) -> None:
    job = await new_job(client, policy={"min_retain_probability_ratio": 0.95})
    assert job["policy"]["min_retain_probability_ratio"] == 0.95
    assert job["policy"]["max_forget_probability"] == DEFAULT_POLICY.max_forget_probability
    assert job["policy"]["name"] == "default.tightened"


async def test_a_named_policy_may_be_taken_and_added_to(client: httpx.AsyncClient) -> None:
    assert (await new_job(client, policy="fast"))["policy"] == POLICIES["fast"].model_dump(mode="json")
    holdout = await upload(client, "holdout", *(record(f"Nobody {number}") for number in range(8)))
    audit = await new_job(client, policy={"name": "audit"}, holdout_set=holdout)
    assert audit["policy"] == POLICIES["audit"].model_dump(mode="json")
    more = {"name": "default", "probes": [*PROBES, "recall"], "max_attempts": 3, "max_sampled_leak": 0.1}
    policy = (await new_job(client, policy=more))["policy"]
    assert {name: policy[name] for name in more} == more | {"name": "default.tightened", "probes": [*PROBES]}


async def test_a_limit_brings_the_probe_that_measures_for_it(client: httpx.AsyncClient) -> None:
    policy = (await new_job(client, policy={"name": "fast", "max_sampled_leak": 0.1}))["policy"]
    assert policy["probes"] == [*POLICIES["fast"].probes, "sampling"]


@pytest.mark.parametrize("policy", ["audit", {"max_membership_auc_distance": 0.1}])
async def test_a_verdict_on_membership_needs_a_holdout_set(client: httpx.AsyncClient, policy: Any) -> None:
    response = await post_job(client, policy=policy)
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/holdout_set")


async def test_a_holdout_set_too_small_to_judge_by_is_refused(client: httpx.AsyncClient) -> None:
    holdout = await upload(client, "holdout", *(record(f"Nobody {number}") for number in range(7)))
    response = await post_job(client, policy="audit", holdout_set=holdout)
    assert response.json()["errors"][0] == {
        "pointer": "/holdout_set",
        "detail": "needs at least 8 records to judge membership by",
    }
    assert (await post_job(client, holdout_set=holdout)).status_code == 202, "the default judges it where it can"


async def test_a_control_is_shown_by_name_and_version(client: httpx.AsyncClient) -> None:
    other = tiny.adapter_file()[:-1] + b"\x01"
    assert (await post_adapter(client, name="never-trained", weights=other)).status_code == 201
    for control in ("never-trained", "never-trained@1"):
        assert (await new_job(client, control=control))["control"] == "never-trained@1"
    for unknown in ("never-trained@2", "never-trained@1@1", "never-trained\x00", "never-trained\n"):
        response = await post_job(client, control=unknown)
        assert response.status_code == 422
        assert response.json()["errors"][0]["pointer"] == "/control"


async def test_the_adapter_under_another_name_is_no_control(client: httpx.AsyncClient) -> None:
    assert (await post_adapter(client, name="the-same")).status_code == 201
    response = await post_job(client, control="the-same")
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/control")


async def test_a_control_on_another_base_model_is_refused(client: httpx.AsyncClient, engine: Engine) -> None:
    assert (await post_adapter(client, name="elsewhere")).status_code == 201
    with Session(engine) as session, session.begin():
        base = session.scalars(select(BaseModelRow)).first()
        assert base is not None
        columns = {column.name: getattr(base, column.name) for column in BaseModelRow.__table__.columns}
        session.add(BaseModelRow(**columns | {"id": "bm_other", "name": "other"}))
        session.flush()
        session.execute(update(Adapter).where(Adapter.name == "elsewhere").values(base_model_id="bm_other"))
    response = await post_job(client, control="elsewhere")
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/control")


async def test_training_may_be_asked_to_go_further(client: httpx.AsyncClient) -> None:
    stricter = {"training_max_forget_extraction_strength": 0.0, "training_min_retain_probability_ratio": 1.0}
    job = await new_job(client, policy=stricter)
    assert {name: job["policy"][name] for name in stricter} == stricter


async def test_jobs_are_listed_newest_first_and_filtered(client: httpx.AsyncClient) -> None:
    first = (await new_job(client, subject_request_id="sr-1"))["id"]
    second = (await new_job(client))["id"]
    await client.post(f"/unlearn-jobs/{first}/cancel")

    async def ids(**query: str) -> list[str]:
        return [job["id"] for job in (await client.get("/unlearn-jobs", params=query)).json()["data"]]

    assert await ids() == [second, first]
    assert await ids(status="cancelled") == [first]
    assert await ids(subject_request_id="sr-1") == [first]
    assert await ids(adapter="support-bot") == [second, first]
    assert await ids(adapter="nobody") == []
    page = (await client.get("/unlearn-jobs?limit=1")).json()
    assert await ids(cursor=page["next_cursor"]) == [first]


async def test_places_in_the_queue_are_counted(client: httpx.AsyncClient) -> None:
    jobs = [(await new_job(client))["id"] for _ in range(3)]
    await client.post(f"/unlearn-jobs/{jobs[0]}/cancel")
    places = [(await client.get(f"/unlearn-jobs/{job}")).json()["progress"]["queue_position"] for job in jobs]
    assert places == [None, 1, 2]


async def test_a_queued_job_is_cancelled_at_once(client: httpx.AsyncClient) -> None:
    job = (await new_job(client))["id"]
    response = await client.post(f"/unlearn-jobs/{job}/cancel")
    assert (response.status_code, response.json()["status"]) == (202, "cancelled")
    assert response.json()["finished_at"] is not None
    assert (await client.post(f"/unlearn-jobs/{job}/cancel")).status_code == 409


async def test_what_a_worker_left_of_a_queued_job_is_deleted_when_it_is_cancelled(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    job = await new_job(client)
    claim(engine, job["run_id"])
    with Session(engine) as session, session.begin():
        assert session.scalars(transitions.hand_back(job["run_id"], 1)).one()
    assert (await client.post(f"/unlearn-jobs/{job['id']}/cancel")).json()["status"] == "cancelled"
    with Session(engine) as session:
        last = session.scalars(select(OutboxMessage).order_by(OutboxMessage.id.desc())).first()
    assert last is not None
    assert (last.task, last.argument) == (outbox.DELETE_CHECKPOINTS_TASK, job["run_id"])


async def test_a_running_job_is_asked_to_stop(client: httpx.AsyncClient, engine: Engine) -> None:
    job = await new_job(client)
    claim(engine, job["run_id"])
    response = await client.post(f"/unlearn-jobs/{job['id']}/cancel")
    assert (response.status_code, response.json()["status"]) == (202, "running")
    assert response.json()["cancel_requested_at"] is not None
    again = (await client.post(f"/unlearn-jobs/{job['id']}/cancel")).json()
    assert again["cancel_requested_at"] == response.json()["cancel_requested_at"]


async def test_a_cancelled_job_can_be_retried_and_published_again(client: httpx.AsyncClient, engine: Engine) -> None:
    job = await new_job(client)
    await client.post(f"/unlearn-jobs/{job['id']}/cancel")
    response = await client.post(f"/unlearn-jobs/{job['id']}/retry")
    assert (response.status_code, response.json()["status"]) == (202, "queued")
    assert response.json()["cancel_requested_at"] is None
    assert response.json()["finished_at"] is None
    with Session(engine) as session:
        assert session.scalars(select(OutboxMessage.argument)).all() == [job["run_id"]] * 2


async def test_a_live_job_cannot_be_retried(client: httpx.AsyncClient, engine: Engine) -> None:
    job = await new_job(client)
    assert (await client.post(f"/unlearn-jobs/{job['id']}/retry")).status_code == 409
    claim(engine, job["run_id"])
    assert (await client.post(f"/unlearn-jobs/{job['id']}/retry")).status_code == 409


async def test_a_job_whose_records_are_gone_cannot_be_retried(client: httpx.AsyncClient) -> None:
    job = await new_job(client)
    await client.post(f"/unlearn-jobs/{job['id']}/cancel")
    await client.delete(f"/datasets/{job['forget_set']}")
    response = await client.post(f"/unlearn-jobs/{job['id']}/retry")
    assert response.status_code == 409
    assert "purged" in response.json()["detail"]


async def test_results_are_withheld_until_there_are_any(client: httpx.AsyncClient) -> None:
    job = (await new_job(client))["id"]
    for part in ("adapter", "evaluation"):
        response = await client.get(f"/unlearn-jobs/{job}/{part}")
        assert response.status_code == 409
        assert "queued" in response.json()["detail"]


async def test_events_are_paged(client: httpx.AsyncClient, engine: Engine) -> None:
    job = await new_job(client)
    with Session(engine) as session, session.begin():
        for number in range(4):
            session.execute(transitions.event(job["id"], "ten_ours", f"event {number}"))
    url = f"/unlearn-jobs/{job['id']}/events"
    page = (await client.get(url, params={"limit": 3})).json()
    rest = (await client.get(url, params={"limit": 3, "cursor": page["next_cursor"]})).json()
    messages = [event["message"] for event in page["data"] + rest["data"]]
    assert messages == ["event 3", "event 2", "event 1", "event 0", "accepted"]
    assert (page["has_more"], rest["has_more"], rest["next_cursor"]) == (True, False, None)
    assert (await client.get(url, params={"cursor": "x"})).status_code == 422


async def test_no_record_reaches_the_database_in_clear(client: httpx.AsyncClient, engine: Engine) -> None:
    await new_job(client, forget_set={"records": [record(MARKER)]})
    with Session(engine) as session:
        rows = [
            *session.scalars(select(UnlearnJob)),
            *session.scalars(select(Run)),
            *session.scalars(select(Dataset)),
        ]
        dump = repr([vars(row) for row in rows])
    assert MARKER not in dump


async def test_a_body_over_the_limit_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/unlearn-jobs", content=b"{}", headers={"Content-Type": "application/json", "Content-Length": "99999999999"}
    )
    assert (response.status_code, response.json()["code"]) == (413, "too_large")


async def test_a_body_that_grows_over_the_limit_is_refused(app: FastAPI, client: httpx.AsyncClient) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 2**20

    response = await client.post("/unlearn-jobs", content=endless(), headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (413, "too_large")


async def test_methods_and_policies_are_listed(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/methods")).json()
    unions = {
        "data": METHOD_REQUESTS, "forget_losses": FORGET_LOSSES, "retain_losses": RETAIN_LOSSES,
        "stop_rules": STOP_RULES,
    }  # fmt: skip
    for field, members in unions.items():
        assert [entry["type"] for entry in answer[field]] == list(members)
        for entry in answer[field]:
            assert entry["description"]
            assert "\n" not in entry["description"]
            assert entry["defaults"]["type"] == entry["type"]
            assert set(entry["defaults"]) == set(entry["json_schema"]["properties"])
    blur = answer["data"][0]
    assert (blur["object"], blur["type"], blur["defaults"]["gamma"]) == ("method", "blur", "auto")
    assert (await client.get("/policies")).json()["data"] == [
        policy.model_dump(mode="json") for policy in POLICIES.values()
    ]


@pytest.mark.parametrize("field", ["policy", "forget_set"])
async def test_a_request_that_is_nested_too_deeply_is_refused(client: httpx.AsyncClient, field: str) -> None:
    deep: Any = {}
    for _ in range(300):
        deep = {"a": deep}
    response = await post_job(client, **{field: deep if field == "policy" else {"records": [deep]}})
    assert response.status_code == 422


async def test_an_idempotency_key_with_a_nul_is_refused(client: httpx.AsyncClient) -> None:
    response = await client.post("/unlearn-jobs", json={}, headers=[(b"Idempotency-Key", b"a\x00b")])
    assert response.status_code == 422


async def test_a_body_s_limit_does_not_depend_on_what_the_client_calls_it(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    for kind in ("text/plain", "application/x+json", ""):
        headers = {"Content-Type": kind, "Content-Length": str(33 * 2**20)}
        response = await client.post("/unlearn-jobs", content=b"{}", headers=headers)
        assert response.status_code == 413, kind


async def test_a_default_retain_set_is_kept_while_an_adapter_has_it(client: httpx.AsyncClient) -> None:
    retain = await upload(client, "retain", record("Bob"))
    await post_adapter(client, name="with-default", retain_set=retain)
    response = await client.delete(f"/datasets/{retain}")
    assert response.status_code == 409
    assert "with-default" in response.json()["detail"]


async def test_a_retried_job_shows_nothing_of_its_earlier_attempt(client: httpx.AsyncClient, engine: Engine) -> None:
    job = await new_job(client)
    with Session(engine) as session, session.begin():
        run = session.get_one(Run, job["run_id"])
        run.status, run.attempt, run.step, run.total_steps, run.percent, run.source_version = (
            "failed",
            1,
            80,
            80,
            98.0,
            1,
        )
        session.add(EvaluationRow(id="ev", tenant_id="ten_ours", run_id=run.id, attempt=1, document={}))
        session.execute(transitions.follow(run.id, "failed", error={"code": "x", "message": "y"})).all()
    again = (await client.post(f"/unlearn-jobs/{job['id']}/retry")).json()
    assert (again["progress"]["step"], again["progress"]["percent"], again["source_version"]) == (0, 0.0, None)
    assert again["error"] is None
    assert (await client.get(f"/unlearn-jobs/{job['id']}/evaluation")).status_code == 409
