"""Finding jobs: filters, and cursors while jobs are added."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy import Engine, text

from tests.app.conftest import post_job

pytestmark = pytest.mark.usefixtures("adapter")


async def new(client: httpx.AsyncClient, **body: object) -> str:
    """The id of an accepted job."""
    response = await post_job(client, **body)
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


async def ids(client: httpx.AsyncClient, query: str = "") -> list[str]:
    """The ids on a page."""
    response = await client.get(f"/unlearn-jobs?{query}")
    assert response.status_code == 200, response.text
    return [job["id"] for job in response.json()["data"]]


async def test_every_filter_finds_its_jobs_and_no_others(client: httpx.AsyncClient, engine: Engine) -> None:
    old = await new(client, requested_at="2026-01-31T12:00:00Z", metadata={"case": "7", "a b": "x"})
    cancelled = await new(client, subject_request_id="sr-1", metadata={"case": "8"})
    queued = await new(client)
    await client.post(f"/unlearn-jobs/{cancelled}/cancel")
    assert await ids(client) == [queued, cancelled, old]
    assert await ids(client, "status=cancelled") == [cancelled]
    assert await ids(client, "status=cancelled&status=queued") == [queued, cancelled, old]
    assert await ids(client, "status=running&status=queued&limit=1") == [queued]
    assert await ids(client, "adapter=support-bot&status=queued") == [queued, old]
    assert await ids(client, "subject_request_id=sr-1") == [cancelled]
    assert await ids(client, "due_before=2026-03-01T00:00:00Z") == [old]
    assert await ids(client, "due_before=0001-01-01T00:00:00Z") == []
    assert await ids(client, "metadata[case]=7&metadata[a%20b]=x") == [old]
    assert await ids(client, "metadata[case]=7&metadata[case]=8") == []
    assert await ids(client, "overdue=true") == [old]
    assert await ids(client, "overdue=true&status=cancelled") == []
    assert (await client.get(f"/unlearn-jobs/{old}")).json()["overdue"] is True
    with engine.begin() as connection:
        connection.execute(text("UPDATE unlearn_jobs SET status = 'failed'"))
    assert await ids(client, "overdue=true") == []
    assert (await client.get(f"/unlearn-jobs/{old}")).json()["overdue"] is False


@pytest.mark.parametrize("query", ["status=done", "due_before=soon", "overdue=perhaps", "metadata[k]=" + "x" * 513])
async def test_a_filter_that_is_none_is_refused(client: httpx.AsyncClient, query: str) -> None:
    assert (await client.get(f"/unlearn-jobs?{query}")).status_code == 422


@pytest.mark.parametrize("query", ["", "status=queued&status=running", "due_before=2999-01-01T00:00:00Z"])
async def test_jobs_that_are_added_between_pages_disturb_none(client: httpx.AsyncClient, query: str) -> None:
    before = [await new(client) for _ in range(5)][::-1]
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await client.get(f"/unlearn-jobs?{query}&limit=2" + (f"&cursor={cursor}" if cursor else ""))).json()
        seen += [job["id"] for job in page["data"]]
        cursor = page["next_cursor"]
        await new(client)
    assert seen == before


async def test_a_cursor_that_was_changed_is_refused(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        await new(client)
    cursor = (await client.get("/unlearn-jobs?limit=1")).json()["next_cursor"]
    assert (await client.get(f"/unlearn-jobs?cursor={cursor}")).status_code == 200
    changed = [cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :] for place in (0, 20, -1)]
    for other in (*changed[:2], cursor[:-1], cursor + "A", cursor[:-1] + ("A" if cursor[-1] != "A" else "B")):
        assert (await client.get("/unlearn-jobs", params={"cursor": other})).status_code == 422, other
    # It is a place in another order.
    assert (await client.get(f"/unlearn-jobs?overdue=true&cursor={cursor}")).status_code == 422


async def test_a_place_in_a_long_queue_is_counted_so_far_and_no_further(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    job = await new(client)
    with engine.begin() as connection:
        connection.execute(
            text("""INSERT INTO runs (id, tenant_id, adapter_id, status, attempt, lost_workers, publish_count, step,
                percent, created_at) SELECT 'run_' || n, tenant_id, adapter_id, 'queued', 0, 0, 0, 0, 0,
                now() - interval '1 day' FROM runs, generate_series(1, 150) AS n""")
        )
    assert (await client.get(f"/unlearn-jobs/{job}")).json()["progress"]["queue_position"] == 101


async def test_the_wait_of_a_queued_job_follows_what_runs_took(client: httpx.AsyncClient, engine: Engine) -> None:
    first, second = await new(client), await new(client)
    url = f"/unlearn-jobs/{second}"
    assert (await client.get(url)).json()["progress"]["eta_seconds"] is None
    with engine.begin() as connection:
        connection.execute(
            text("""UPDATE runs SET status = 'succeeded', started_at = now() - interval '90 s', finished_at = now()
                WHERE id = (SELECT run_id FROM unlearn_jobs WHERE id = :job)"""),
            {"job": first},
        )
        connection.execute(text("INSERT INTO worker_heartbeats (name, queue) VALUES ('w', 'gpu')"))
    answer = await client.get(url)
    assert (answer.json()["progress"]["eta_seconds"], answer.headers["retry-after"]) == (90.0, "2")


@pytest.mark.parametrize("moment", ["0.5", "1769860800", "2026-01-31"])
async def test_a_number_or_a_bare_date_is_no_time_to_be_due_before(client: httpx.AsyncClient, moment: str) -> None:
    response = await client.get("/unlearn-jobs", params={"due_before": moment})
    assert (response.status_code, response.json()["errors"][0]["pointer"]) == (422, "/query/due_before")
