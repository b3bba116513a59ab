"""Following a job by Server-Sent Events, over a real socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import httpx
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from app.jobs import transitions
from app.jobs.events import following
from app.settings import Settings
from tests.app.conftest import make_key, post_job, serving

pytestmark = pytest.mark.usefixtures("adapter")
STREAM = {"Accept": "text/event-stream"}


class Message(NamedTuple):
    """One message of a stream."""

    id: str | None
    event: str | None
    data: Any


class Listener:
    """Reads the messages of a stream as the specification says, one by one."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.comments: list[str] = []
        self.retry: int | None = None
        self._lines = response.aiter_lines()

    async def next(self) -> Message | None:
        """The next message; None at the end of the stream. Waits for it for a while."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(30):
            async for line in self._lines:
                name, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if line.startswith(":"):
                    self.comments.append(value)
                elif name == "retry":
                    self.retry = int(value)
                elif line:
                    fields[name] = value
                elif "data" in fields:
                    return Message(fields.get("id"), fields.get("event"), json.loads(fields["data"]))
        return None

    async def rest(self) -> list[Message]:
        """All messages to the end."""
        found = []
        while (message := await self.next()) is not None:
            found.append(message)
        return found


class Service:
    """The service behind a socket, as the tenant "ours" sees it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    @asynccontextmanager
    async def follow(self, job: str, **headers: str) -> AsyncIterator[Listener]:
        """The stream of a job."""
        url = f"/unlearn-jobs/{job}/events"
        async with self.http.stream("GET", url, headers=STREAM | headers) as response:
            assert response.status_code == 200
            yield Listener(response)

    async def job(self) -> str:
        """A job that waits."""
        return str((await post_job(self.http)).json()["id"])

    async def cancel(self, job: str) -> None:
        """End a job that waits."""
        assert (await self.http.post(f"/unlearn-jobs/{job}/cancel")).status_code == 202

    async def listed(self, job: str) -> list[dict[str, Any]]:
        """The events of the list, oldest first."""
        answer = await self.http.get(f"/unlearn-jobs/{job}/events?limit=100")
        return list(reversed(answer.json()["data"]))


@asynccontextmanager
async def connected(settings: Settings, key: str) -> AsyncIterator[Service]:
    """The service, started and reached with a key."""
    async with serving(settings) as (host, port):
        limits = httpx.Limits(max_connections=None)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", headers=headers, limits=limits) as http:
            yield Service(http)


@pytest.fixture
async def service(settings: Settings, engine: Engine) -> AsyncIterator[Service]:
    """The service as it is usually set."""
    async with connected(settings, make_key(engine, "ours")) as found:
        yield found


def write(engine: Engine, job: str, *messages: str) -> None:
    """What a worker does while it runs."""
    with Session(engine) as session, session.begin():
        for message in messages:
            session.execute(transitions.event(job, "ten_ours", message))


def data(messages: list[Message]) -> list[Any]:
    """What messages hold, without the closing one."""
    return [message.data for message in messages if message.event != "end"]


async def test_only_who_may_read_the_job_gets_a_stream(service: Service, engine: Engine) -> None:
    job = await service.job()
    url = f"/unlearn-jobs/{job}/events"
    for key, status in (
        ("nonsense", 401),
        (make_key(engine, "theirs"), 404),
        (make_key(engine, "ours", "jobs:write"), 403),
    ):
        answer = await service.http.get(url, headers=STREAM | {"Authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert (await service.http.get("/unlearn-jobs/job_none/events", headers=STREAM)).status_code == 404


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, text/event-stream"])
async def test_the_list_stays_the_answer_to_who_does_not_ask_for_a_stream(service: Service, accept: str) -> None:
    answer = await service.http.get(f"/unlearn-jobs/{await service.job()}/events", headers={"Accept": accept})
    assert answer.json()["object"] == "list"
    assert answer.headers["vary"] == "Accept"


async def test_an_ended_job_is_told_from_the_beginning_to_its_end(service: Service, engine: Engine) -> None:
    job = await service.job()
    write(engine, job, "line\nbreak", "é")
    await service.cancel(job)
    async with service.follow(job) as listener:
        messages = await listener.rest()
    events = await service.listed(job)
    told = [event["message"] for event in events]
    assert told == ["accepted", "line\nbreak", "é", "cancelled before it was started"]
    assert data(messages) == events
    assert [(each.id, each.event) for each in messages[:-1]] == [(str(each["id"]), each["type"]) for each in events]
    assert messages[-1] == Message(None, "end", {"job": job, "status": "cancelled"})
    assert listener.retry == following.RETRY
    headers = listener.response.headers
    assert headers["content-type"].startswith("text/event-stream")
    assert (headers["cache-control"], headers["x-accel-buffering"], headers["vary"]) == ("no-store", "no", "Accept")


async def test_events_come_as_they_happen_and_the_stream_ends_with_the_job(service: Service, engine: Engine) -> None:
    job = await service.job()
    async with service.follow(job) as listener:
        assert (await listener.next()) is not None
        for message in ("first", "second"):
            write(engine, job, message)
            come = await listener.next()
            assert come is not None
            assert come.data["message"] == message
        await service.cancel(job)
        assert [each.event for each in await listener.rest()] == ["status", "end"]


async def test_a_stream_that_was_cut_goes_on_without_loss_or_repetition(service: Service, engine: Engine) -> None:
    job = await service.job()
    write(engine, job, "first")
    async with service.follow(job) as listener:
        assert await listener.next()
        last = await listener.next()
    assert last is not None
    assert last.id is not None
    write(engine, job, "second", "third")
    await service.cancel(job)
    async with service.follow(job, **{"Last-Event-ID": last.id}) as listener:
        assert data(await listener.rest()) == (await service.listed(job))[2:]


async def test_a_long_history_comes_whole_and_once(service: Service, engine: Engine) -> None:
    job = await service.job()
    messages = [str(number) for number in range(2 * following.BATCH)]
    write(engine, job, *messages)
    await service.cancel(job)
    async with service.follow(job) as listener:
        assert [event["message"] for event in data(await listener.rest())][1:-1] == messages


async def test_who_comes_back_after_the_end_is_told_to_stay_away(service: Service) -> None:
    job = await service.job()
    await service.cancel(job)
    last = (await service.listed(job))[-1]["id"]
    answer = await service.http.get(f"/unlearn-jobs/{job}/events", headers=STREAM | {"Last-Event-ID": str(last)})
    assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 19, "", "1_0"])
async def test_an_id_that_is_none_is_refused(service: Service, last: str) -> None:
    url = f"/unlearn-jobs/{await service.job()}/events"
    answer = await service.http.get(url, headers=STREAM | {"Last-Event-ID": last})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/header/last-event-id"


async def test_silence_is_broken_by_comments(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "HEARTBEAT", 0.0)
    job = await service.job()
    async with service.follow(job) as listener:
        await listener.next()
        # Two looks, at least one of them after the only event.
        await asyncio.sleep(2 * following.SOONEST)
        await service.cancel(job)
        await listener.rest()
        assert listener.comments


async def test_a_stream_ends_when_its_key_does(
    service: Service, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "RECHECK", 0.0)
    job = await service.job()
    key = make_key(engine, "ours", "jobs:read")
    async with service.follow(job, Authorization=f"Bearer {key}") as listener:
        await listener.next()
        write(engine, job, "while it is good")
        come = await listener.next()
        assert come is not None
        with Session(engine) as session, session.begin():
            session.execute(text("UPDATE api_keys SET revoked_at = now() WHERE scopes = '{jobs:read}'"))
        assert await listener.rest() == []


async def test_streams_that_wait_hold_no_connection(service: Service) -> None:
    job = await service.job()
    async with AsyncExitStack() as stack:
        for _ in range(25):
            listener = await stack.enter_async_context(service.follow(job))
            assert await listener.next()
        assert (await service.http.get("/unlearn-jobs")).status_code == 200
        assert (await service.http.get(f"/unlearn-jobs/{job}")).status_code == 200


@pytest.mark.parametrize(("most", "of_tenant"), [(2, 1), (1, 2)])
async def test_too_many_streams_are_refused_until_one_ends(
    settings: Settings, engine: Engine, most: int, of_tenant: int
) -> None:
    few = settings.model_copy(update={"max_event_streams": most, "max_tenant_event_streams": of_tenant})
    async with connected(few, make_key(engine, "ours")) as service:
        job = await service.job()
        url = f"/unlearn-jobs/{job}/events"
        for _ in range(3):
            async with asyncio.timeout(20), AsyncExitStack() as stack:
                # The one before may take a moment to be gone.
                while (await stack.enter_async_context(service.http.stream("GET", url, headers=STREAM))).is_error:
                    await asyncio.sleep(0.05)
                answer = await service.http.get(url, headers=STREAM)
                assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
                assert int(answer.headers["retry-after"]) > 0
                # Another tenant has a place of its own; a list takes none.
                theirs = {"Authorization": f"Bearer {make_key(engine, 'theirs')}"}
                others = await service.http.get(url, headers=STREAM | theirs)
                assert others.status_code == (404 if most > of_tenant else 429)
                assert (await service.http.get(url)).status_code == 200


async def test_a_server_that_stops_ends_its_streams_as_they_should_end(settings: Settings, engine: Engine) -> None:
    key = make_key(engine, "ours")
    async with asyncio.timeout(60), AsyncExitStack() as stack:
        # Without an end of its own patience: an open stream would have it wait for ever.
        async with serving(settings) as (host, port):
            http = httpx.AsyncClient(base_url=f"http://{host}:{port}", headers={"Authorization": f"Bearer {key}"})
            service = Service(await stack.enter_async_context(http))
            listener = await stack.enter_async_context(service.follow(await service.job()))
            assert await listener.next()
        assert await listener.rest() == []


async def test_a_stream_ends_when_the_database_cannot_be_asked(service: Service, engine: Engine) -> None:
    async with service.follow(await service.job()) as listener:
        assert await listener.next()
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE job_events RENAME TO elsewhere"))
        assert await listener.rest() == []
