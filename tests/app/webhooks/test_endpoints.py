"""Endpoints, their secrets and their delivery log, over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from app.settings import Settings
from app.webhooks.events import EVENTS, emit
from app.webhooks.service import MAX_ENDPOINTS
from app.webhooks.tables import WebhookDelivery, WebhookEndpoint, WebhookSecret
from tests.app.audit.test_record import entries
from tests.app.conftest import post_job

URL = "https://dsr.example.com/lethe"


async def add(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """A new endpoint, with its secret."""
    response = await client.post("/webhook-endpoints", json={"url": URL, **body})
    assert response.status_code == 201, response.text
    endpoint: dict[str, Any] = response.json()
    return endpoint


def deliveries(engine: Engine) -> list[WebhookDelivery]:
    """What waits or was sent, oldest first."""
    with Session(engine) as session:
        oldest = select(WebhookDelivery).order_by(WebhookDelivery.created_at, WebhookDelivery.id)
        return list(session.scalars(oldest))


def change(engine: Engine, delivery_id: str, **values: Any) -> None:
    """Change a delivery behind everybody's back."""
    with Session(engine) as session, session.begin():
        session.execute(update(WebhookDelivery).where(WebhookDelivery.id == delivery_id).values(**values))


async def test_an_endpoint_is_made_with_a_secret_that_is_shown_once(client: httpx.AsyncClient) -> None:
    made = await add(client)
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made["public_key"].startswith("whpk_")
    assert (made["events"], made["signatures"], made["enabled"], made["disabled_reason"]) == ([], ["v1"], True, None)
    shown = await client.get(f"/webhook-endpoints/{made['id']}")
    assert shown.json() == made
    listed = await client.get("/webhook-endpoints")
    assert listed.json()["data"] == [made]
    for response in (shown, listed):
        assert secret.removeprefix("whsec_") not in response.text


async def test_secrets_are_not_in_the_database(client: httpx.AsyncClient, engine: Engine) -> None:
    made = await add(client)
    with Session(engine) as session:
        row = session.scalars(select(WebhookSecret)).one()
    held = repr({column.name: getattr(row, column.name) for column in WebhookSecret.__table__.columns}).encode()
    assert made["secret"].removeprefix("whsec_").encode() not in held
    assert row.key_id == "k1"


async def test_what_cannot_be_an_endpoint_is_refused(client: httpx.AsyncClient) -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"url": "http://dsr.example.com/"}, "/url"),
        ({"url": "https://169.254.169.254/latest"}, "/url"),
        ({"url": "https://a:secret-word@dsr.example.com/"}, "/url"),
        ({"url": ""}, "/url"),
        ({"events": ["unlearn_job.exploded"]}, "/events/0"),
        ({"events": [["x"]]}, "/events/0"),
        ({"signatures": []}, "/signatures"),
        ({"signatures": ["v2"]}, "/signatures/0"),
        ({"secret": "whsec_mine"}, "/secret"),
    ]
    path = f"/webhook-endpoints/{(await add(client))['id']}"
    for body, pointer in refused:
        response = await client.post("/webhook-endpoints", json={"url": URL, **body})
        assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, pointer), body
        assert "secret-word" not in response.text
        assert (await client.patch(path, json=body)).status_code == 422


async def test_a_change_keeps_what_it_does_not_name(client: httpx.AsyncClient) -> None:
    made = await add(client, events=["unlearn_job.failed", "unlearn_job.failed"])
    path = f"/webhook-endpoints/{made['id']}"
    assert made["events"] == ["unlearn_job.failed"]
    changed = (await client.patch(path, json={"signatures": ["v1a", "v1"]})).json()
    assert (changed["events"], changed["signatures"], changed["url"]) == (made["events"], ["v1a", "v1"], URL)
    assert (await client.patch(path, json={"events": []})).json()["events"] == []
    assert (await client.patch(path, json={})).json() == (await client.get(path)).json()


async def test_a_deleted_endpoint_takes_its_log_along(client: httpx.AsyncClient, engine: Engine) -> None:
    made = await add(client)
    path = f"/webhook-endpoints/{made['id']}"
    await client.post(f"{path}/test")
    assert (await client.delete(path)).status_code == 204
    assert (await client.get(path)).status_code == 404
    assert deliveries(engine) == []
    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(WebhookSecret)) == 0


async def test_there_are_only_so_many(client: httpx.AsyncClient, engine: Engine) -> None:
    await add(client)
    rows = [
        WebhookEndpoint(id=f"we_{number}", tenant_id="ten_ours", url=URL, events=[], signatures=["v1"])
        for number in range(MAX_ENDPOINTS - 1)
    ]
    with Session(engine) as session, session.begin():
        session.add_all(rows)
    assert (await client.post("/webhook-endpoints", json={"url": URL})).status_code == 409


async def test_a_new_secret_lets_only_the_one_before_sign_along(client: httpx.AsyncClient, engine: Engine) -> None:
    made = await add(client)
    path = f"/webhook-endpoints/{made['id']}"
    for _ in range(2):
        made, before = (await client.post(f"{path}/rotate-secret")).json(), made
        assert (made["secret"], made["public_key"]) != (before["secret"], before["public_key"])
    assert (await client.get(path)).json()["public_key"] == made["public_key"]
    with Session(engine) as session:
        left = func.extract("epoch", WebhookSecret.expires_at - func.now())
        waits = session.scalars(select(left).order_by(WebhookSecret.created_at)).all()
    assert len(waits) == 2
    assert 23 * 3600 < waits[0] <= 24 * 3600
    assert waits[1] is None


async def test_a_test_and_the_log(client: httpx.AsyncClient, engine: Engine) -> None:
    made, other = await add(client, events=["unlearn_job.failed"]), await add(client)
    path = f"/webhook-endpoints/{made['id']}"
    response = await client.post(f"{path}/test")
    assert response.status_code == 202
    delivery = response.json()
    assert delivery["type"] == "webhook_endpoint.test"
    assert (delivery["subject"], delivery["endpoint"]) == (made["id"], made["id"])
    assert (delivery["status"], delivery["attempts"], delivery["response_status"]) == ("pending", 0, None)
    assert (await client.get(f"{path}/deliveries")).json()["data"] == [delivery]
    assert (await client.get(f"{path}/deliveries?status=failed")).json()["data"] == []
    assert (await client.get(f"/webhook-endpoints/{other['id']}/deliveries")).json()["data"] == []
    assert (await client.get(f"/webhook-deliveries?subject={made['id']}")).json()["data"] == [delivery]
    assert (await client.get("/webhook-deliveries?subject=job_x")).json()["data"] == []


async def test_a_disabled_endpoint_is_told_nothing(client: httpx.AsyncClient, engine: Engine, adapter: str) -> None:
    made = await add(client)
    path = f"/webhook-endpoints/{made['id']}"
    delivery = (await client.post(f"{path}/test")).json()
    off = (await client.patch(path, json={"enabled": False})).json()
    assert (off["enabled"], off["disabled_reason"]) == (False, "caller")
    ended = (await client.get(f"{path}/deliveries")).json()["data"][0]
    assert (ended["status"], ended["error"], ended["next_at"]) == ("failed", "endpoint_disabled", None)
    assert (await client.post(f"{path}/test")).status_code == 409
    assert (await client.post(f"/webhook-deliveries/{delivery['id']}/replay")).status_code == 409
    job = (await post_job(client)).json()["id"]
    await client.post(f"/unlearn-jobs/{job}/cancel")
    assert len(deliveries(engine)) == 1
    on = (await client.patch(path, json={"enabled": True})).json()
    assert (on["enabled"], on["disabled_reason"]) == (True, None)
    again = await client.post(f"/webhook-deliveries/{delivery['id']}/replay")
    assert again.status_code == 202


async def test_an_ended_delivery_is_sent_again_under_its_id(client: httpx.AsyncClient, engine: Engine) -> None:
    made = await add(client)
    delivery = (await client.post(f"/webhook-endpoints/{made['id']}/test")).json()
    path = f"/webhook-deliveries/{delivery['id']}/replay"
    assert (await client.post(path)).status_code == 409
    change(engine, delivery["id"], status="failed", attempts=10, tries=10, next_at=None, finished_at=func.now())
    again = (await client.post(path)).json()
    assert again["id"] == delivery["id"]
    assert (again["status"], again["attempts"], again["finished_at"]) == ("pending", 10, None)
    assert again["next_at"] is not None
    assert deliveries(engine)[0].tries == 0


async def test_the_key_of_callbacks_is_made_once_and_replaced(client: httpx.AsyncClient, engine: Engine) -> None:
    path = "/webhook-endpoints/callback-key"
    first = (await client.get(path)).json()
    assert (await client.get(path)).json() == first
    assert set(first) == {"object", "public_key", "created_at"}
    rotated = (await client.post(f"{path}/rotate-secret")).json()
    assert rotated["secret"].startswith("whsec_")
    assert rotated["public_key"] != first["public_key"]
    assert (await client.get(path)).json()["public_key"] == rotated["public_key"]


async def test_a_job_tells_its_endpoints_and_its_callback(
    client: httpx.AsyncClient, foreign: httpx.AsyncClient, engine: Engine, adapter: str
) -> None:
    everything, failures = await add(client), await add(client, events=["unlearn_job.failed"])
    cancels = await add(client, events=["unlearn_job.failed", "unlearn_job.cancelled"])
    await add(foreign)
    job = (await post_job(client, callback_url=URL)).json()
    assert job["callback_url"] == URL
    assert deliveries(engine) == []
    await client.post(f"/unlearn-jobs/{job['id']}/cancel")
    told = {delivery.endpoint_id: delivery for delivery in deliveries(engine)}
    assert set(told) == {everything["id"], cancels["id"], None}
    assert failures["id"] not in told
    assert {(d.type, d.subject_id, d.tenant_id) for d in told.values()} == {
        ("unlearn_job.cancelled", job["id"], "ten_ours")
    }
    assert len({delivery.id for delivery in told.values()}) == 3


async def test_a_retry_tells_nobody(client: httpx.AsyncClient, engine: Engine, adapter: str) -> None:
    await add(client)
    job = (await post_job(client)).json()["id"]
    await client.post(f"/unlearn-jobs/{job}/cancel")
    await client.post(f"/unlearn-jobs/{job}/retry")
    assert [delivery.type for delivery in deliveries(engine)] == ["unlearn_job.cancelled"]


async def test_a_callback_that_leads_inside_is_refused_when_the_job_is_submitted(
    client: httpx.AsyncClient, adapter: str
) -> None:
    for url in ("http://dsr.example.com/", "https://10.0.0.1/", "https://[::ffff:10.0.0.1]/", ""):
        response = await post_job(client, callback_url=url)
        assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/callback_url"), url
    assert (await client.get("/unlearn-jobs")).json()["data"] == []


async def test_every_event_can_be_told_of_in_a_transaction_of_its_own(
    client: httpx.AsyncClient, engine: Engine, adapter: str
) -> None:
    await add(client)
    job = (await post_job(client, callback_url=URL)).json()["id"]
    with Session(engine) as session, session.begin():
        for event in EVENTS:
            session.execute(emit(event, job))
    assert sorted(delivery.type for delivery in deliveries(engine)) == sorted([*EVENTS, *EVENTS])
    with Session(engine) as session:
        session.execute(emit("unlearn_job.overdue", job))
        session.rollback()
    assert len(deliveries(engine)) == 2 * len(EVENTS)


async def test_the_audit_chain_tells_of_every_change(client: httpx.AsyncClient, engine: Engine) -> None:
    made = await add(client, events=["unlearn_job.failed"])
    path = f"/webhook-endpoints/{made['id']}"
    await client.patch(path, json={"enabled": False, "url": "https://other.example.com/"})
    await client.post(f"{path}/rotate-secret")
    await client.delete(path)
    await client.post("/webhook-endpoints/callback-key/rotate-secret")
    found = [entry for entry in entries(engine) if entry.action.startswith("webhook")]
    assert [(entry.action, entry.data) for entry in found] == [
        ("webhook_endpoint.created", {"events": ["unlearn_job.failed"], "signatures": ["v1"]}),
        ("webhook_endpoint.changed", {"fields": ["enabled", "url"]}),
        ("webhook_endpoint.secret_rotated", {}),
        ("webhook_endpoint.deleted", {}),
        ("webhook_callback_key.rotated", {}),
    ]
    assert {entry.subject_id for entry in found[:4]} == {made["id"]}


def test_the_openapi_document_describes_what_receivers_are_sent(app: FastAPI, settings: Settings) -> None:
    section = app.openapi()["webhooks"]
    assert set(section) == {*EVENTS, "webhook_endpoint.test"}
    for path in section.values():
        names = {parameter["name"] for parameter in path["post"]["parameters"]}
        assert names == {"webhook-id", "webhook-timestamp", "webhook-signature"}
        assert list(path["post"]["responses"]) == ["204"]
