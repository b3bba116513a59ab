"""What holds for every endpoint, taken from the route table so that a new one cannot be forgotten."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute, RouteContext, iter_route_contexts
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import async_sessionmaker

from app.auth.guard import Guard, GuardedRoute, guard_of
from app.auth.scopes import ADMIN, SCOPES
from app.kit.db import make_async_engine
from app.kit.driver import Reads
from app.main import create_app
from app.problems.codes import CODES
from app.settings import Settings
from tests.app.conftest import caller, make_key, post_job, record, upload
from tests.app.identities.indexes import email, line, upload_index
from tests.app.opendsr.requests import UUID, post_request

PUBLIC = {"/livez", "/readyz", "/openapi.json", "/keys", "/problems", "/problems/{code}", "/downloads/{token}"}
# What a call needs in its body to be understood, before it can say that there is no such thing.
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("PATCH", "/adapters/{name}"): {"default_retain_set": None},
    ("PUT", "/adapters/{name}/aliases/{alias}"): {"version": 1},
    ("POST", "/unlearn-jobs/{job_id}/extend"): {"reason": "x"},
}
PUBLIC |= {"/opendsr/v2/discovery", "/opendsr/v2/certificate.pem"}
KEYS = {"type", "title", "status", "detail", "code", "request_id", "errors"}


def contexts(app: FastAPI) -> list[RouteContext]:
    """Every route that is behind a key."""
    return [route for route in iter_route_contexts(app.routes) if route.path and route.path not in PUBLIC]


def routes(app: FastAPI) -> list[tuple[str, str]]:
    """Every (method, path) of the application that is behind a key."""
    return sorted((method, str(route.path)) for route in contexts(app) for method in route.methods or ())


def guard(route: RouteContext) -> Guard | None:
    """The guard of a route."""
    return guard_of(getattr(route.original_route, "dependencies", ()))


def example(path: str) -> str:
    """A URL of a path, with a value for each of its parameters."""
    return re.sub(r"\{[^}]*\}", "x", path)


def check_problem(response: httpx.Response) -> dict[str, Any]:
    """Every error has this one shape."""
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    # OpenDSR has an error object of its own, which its calls add.
    assert set(document) - ({"error"} if "/opendsr/" in str(response.request.url) else set()) == KEYS
    assert document["status"] == response.status_code
    assert CODES[document["code"]].status == document["status"]
    assert document["type"] == f"/problems/{document['code']}"
    assert document["title"] == CODES[document["code"]].title
    assert document["request_id"] == response.headers["x-request-id"]
    assert all(set(error) == {"pointer", "detail"} for error in document["errors"])
    return document


async def test_unauthenticated_callers_are_refused_everywhere(app: FastAPI, anonymous: httpx.AsyncClient) -> None:
    assert len(routes(app)) > 20
    for method, path in routes(app):
        response = await anonymous.request(method, example(path), json={})
        assert response.status_code == 401, (method, path, response.text)
        assert response.headers["www-authenticate"] == "Bearer"
        if method != "HEAD":
            assert check_problem(response)["code"] == "unauthenticated"


async def test_bodies_that_fit_do_not_help_the_unauthenticated(anonymous: httpx.AsyncClient) -> None:
    assert (await post_job(anonymous)).status_code == 401
    assert (await anonymous.post("/base-models", json={"name": "a/b", "source": "tiny"})).status_code == 401
    headers = {"Content-Type": "application/jsonl"}
    response = await anonymous.post("/datasets?purpose=forget", content=b'{"text": "x"}', headers=headers)
    assert response.status_code == 401


def test_every_route_declares_its_scopes(app: FastAPI) -> None:
    missing = [(route.methods, route.path) for route in contexts(app) if not getattr(guard(route), "scopes", ())]
    assert missing == [], "give them dependencies=[requires(...)] of app.dependencies"
    late = [route.path for route in contexts(app) if not isinstance(route.original_route, GuardedRoute)]
    assert late == [], "give their routers route_class=GuardedRoute, which asks before the body is read"


async def test_a_key_without_the_scope_is_refused_before_its_body_is_read(app: FastAPI, engine: Engine) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"no JSON"

    for route in contexts(app):
        declared = guard(route)
        assert declared is not None
        others = [scope for scope in SCOPES if scope not in {*declared.scopes, ADMIN}]
        async with caller(app, make_key(engine, "ours", *others)) as client:
            for method in route.methods or ():
                url = example(str(route.path))
                response = await client.request(
                    method, url, content=body(), headers={"Content-Type": "application/json"}
                )
                assert (response.status_code, read) == (403, 0), (method, route.path, response.text)
                challenge = 'Bearer error="insufficient_scope", scope="{}"'
                assert response.headers["www-authenticate"] == challenge.format(" ".join(declared.scopes))
                if method != "HEAD":
                    assert check_problem(response)["code"] == "forbidden"


async def test_a_body_that_announces_too_much_is_refused_before_it_is_read(
    app: FastAPI, client: httpx.AsyncClient
) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"{}"

    headers = {"Content-Type": "application/json", "Content-Length": str(10**12)}
    for method, path in routes(app):
        response = await client.request(method, example(path), content=body(), headers=headers)
        assert (response.status_code, read) == (413, 0), (method, path, response.text)
        if method != "HEAD":
            assert check_problem(response)["code"] == "too_large"


async def test_each_scope_of_a_route_suffices(app: FastAPI, engine: Engine) -> None:
    for route in contexts(app):
        declared = guard(route)
        assert declared is not None
        for scope in declared.scopes:
            async with caller(app, make_key(engine, "ours", scope)) as client:
                for method in route.methods or ():
                    response = await client.request(method, example(str(route.path)))
                    assert response.status_code not in {401, 403}, (method, route.path, response.text)


@pytest.mark.parametrize("path", ["/unlearn-jobs", "/adapters", "/datasets?purpose=forget", "/base-models"])
async def test_nothing_of_a_body_is_read_before_the_caller_is_known(anonymous: httpx.AsyncClient, path: str) -> None:
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(50):
            read += 1
            yield b"x" * 2**16

    kind = "multipart/form-data; boundary=b" if path == "/adapters" else "application/json"
    response = await anonymous.post(path, content=body(), headers={"Content-Type": kind})
    assert response.status_code == 401
    assert read <= 1


async def test_a_database_that_is_away_is_a_503(app: FastAPI, client: httpx.AsyncClient) -> None:
    nowhere = "postgresql+psycopg://nobody@127.0.0.1:1/none"
    app.state.sessions = async_sessionmaker(make_async_engine(nowhere))
    answers = [await client.get("/datasets")]
    await app.state.reads.close()
    app.state.reads = Reads(nowhere, wait=0.1)
    await app.state.reads.open()
    answers.append(await client.get("/unlearn-jobs/job_0"))
    for response in answers:
        assert check_problem(response)["code"] == "unavailable"
        assert response.headers["retry-after"] == "5"


async def test_what_a_caller_puts_into_a_path_is_not_logged(
    client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    await client.get("/datasets/jane.doe%40example.org%1b[31m")
    printed = capsys.readouterr().out
    assert "/datasets/{dataset_id}" in printed
    assert "jane" not in printed


async def test_an_unknown_or_revoked_key_is_refused(anonymous: httpx.AsyncClient) -> None:
    response = await anonymous.get("/datasets", headers={"Authorization": "Bearer lethe_wrong"})
    assert check_problem(response)["code"] == "unauthenticated"
    response = await anonymous.get("/datasets", headers={"Authorization": "Basic eDp5"})
    assert response.status_code == 401


async def test_foreign_things_are_not_found(
    app: FastAPI, client: httpx.AsyncClient, foreign: httpx.AsyncClient, adapter: str
) -> None:
    dataset = await upload(client, "forget", {"text": "x"})
    kept = await upload(client, "retain", record("Cleo"))
    job = (await post_job(client)).json()["id"]
    key = (await client.post("/api-keys", json={"name": "x", "scopes": ["jobs:read"]})).json()["id"]
    values = {"name:path": "acme/tiny", "name": adapter, "number": "head", "dataset_id": dataset, "job_id": job}
    endpoint = (await client.post("/webhook-endpoints", json={"url": "https://dsr.example.com/"})).json()["id"]
    delivery = (await client.post(f"/webhook-endpoints/{endpoint}/test")).json()["id"]
    values |= {"key_id": key, "endpoint_id": endpoint, "delivery_id": delivery}
    values |= {"alias": "production"}
    assert (await client.put(f"/adapters/{adapter}/aliases/production", json={"version": 1})).status_code == 201
    index = await upload_index(client, line(email("ada@example.org"), records=[record("Ada")]), retain_set=kept)
    await post_request(client, email("ada@example.org"), request_id=UUID)
    values |= {"index_id": index, "subject_request_id": UUID}
    with_ids = [(method, path) for method, path in routes(app) if "{" in path and method != "HEAD"]
    assert len(with_ids) > 10
    for method, path in with_ids:
        url = re.sub(r"\{([^}]*)\}", lambda match: values[match[1]], path)
        response = await foreign.request(method, url, json=BODIES.get((method, path)))
        assert response.status_code == 404, (method, url, response.text)
        check_problem(response)
        mine = await client.request(method, url) if method == "GET" else None
        assert mine is None or mine.status_code in {200, 409}, (url, mine.status_code)


async def test_lists_show_nothing_of_other_tenants(
    client: httpx.AsyncClient, foreign: httpx.AsyncClient, adapter: str
) -> None:
    await post_job(client)
    endpoint = (await client.post("/webhook-endpoints", json={"url": "https://dsr.example.com/"})).json()["id"]
    await client.post(f"/webhook-endpoints/{endpoint}/test")
    for path in (
        "/base-models",
        "/adapters",
        "/datasets",
        "/unlearn-jobs",
        "/webhook-endpoints",
        "/webhook-deliveries",
    ):
        assert len((await client.get(path)).json()["data"]) > 0
        assert (await foreign.get(path)).json()["data"] == []


async def test_a_foreign_dataset_or_adapter_cannot_be_used(
    client: httpx.AsyncClient, foreign: httpx.AsyncClient, adapter: str
) -> None:
    dataset = await upload(foreign, "forget", {"text": "x"})
    response = await post_job(client, forget_set=dataset)
    assert response.status_code == 422
    assert response.json()["errors"][0]["pointer"] == "/forget_set"
    assert (await post_job(foreign)).json()["errors"][0]["pointer"] == "/adapter"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("DELETE", "/unlearn-jobs", 405),
        ("GET", "/datasets?limit=0", 422),
        ("GET", "/datasets/a%00b", 422),
        ("GET", "/unlearn-jobs?subject_request_id=%00", 422),
    ],
)
async def test_errors_of_the_framework_have_the_same_shape(
    client: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    response = await client.request(method, path)
    assert response.status_code == status
    check_problem(response)


async def test_a_wrong_method_is_told_all_right_ones(client: httpx.AsyncClient) -> None:
    response = await client.put("/unlearn-jobs")
    assert response.status_code == 405
    assert response.headers["allow"] == "GET, POST"
    assert (await client.delete("/unlearn-jobs/job_0/adapter")).headers["allow"] == "GET, HEAD"
    # Not those of /webhook-endpoints/{endpoint_id}.
    assert (await client.put("/webhook-endpoints/callback-key")).headers["allow"] == "GET"


async def test_a_crash_tells_nothing_of_its_cause(
    app: FastAPI, client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    async def crash() -> None:
        raise RuntimeError("the record says: my secret")

    app.add_api_route("/crash", crash)
    response = await client.get("/crash")
    assert response.status_code == 500
    assert "secret" not in response.text
    assert json.loads(response.text)["code"] == "internal_error"
    assert "secret" not in capsys.readouterr().out


async def test_an_answer_that_breaks_off_tells_nothing_of_the_cause(
    app: FastAPI, client: httpx.AsyncClient, capsys: pytest.CaptureFixture[str]
) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b"first"
        raise RuntimeError("the record says: my secret")

    async def stream() -> StreamingResponse:
        return StreamingResponse(half())

    app.add_api_route("/half", stream)
    with pytest.raises(AssertionError):  # the client's transport insists on a whole answer
        await client.get("/half")
    printed = "".join(capsys.readouterr())
    assert "RuntimeError" in printed
    assert "secret" not in printed


def test_no_dependency_goes_through_a_thread(app: FastAPI) -> None:
    def walk(dependant: Dependant) -> Iterator[Dependant]:
        yield dependant
        for inner in dependant.dependencies:
            yield from walk(inner)

    endpoints = [route.original_route for route in iter_route_contexts(app.routes)]
    calls = [each.call for route in endpoints if isinstance(route, APIRoute) for each in walk(route.dependant)]
    assert len(calls) > 50
    for call in calls:
        asynchronous = inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)
        assert asynchronous or isinstance(call, Guard), f"{call} goes through a thread with every request"


def test_the_web_side_never_loads_torch() -> None:
    code = (
        "import sys, app.main, app.cli, worker.celery_app, worker.tasks; print([m for m in sys.modules if m in BAD])"
    )
    bad = "BAD = {'torch', 'transformers', 'peft', 'numpy'}; "
    environment = {
        "LETHE_DATABASE_URL": "postgresql+psycopg://x",
        "LETHE_REDIS_URL": "redis://x",
        "LETHE_STORAGE_DIR": "/nowhere",
        "LETHE_ENCRYPTION_KEYS": "k1:" + "A" * 43 + "=",
        "LETHE_KEY_PEPPER": "A" * 43 + "=",
    }
    done = subprocess.run(
        [sys.executable, "-c", bad + code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_openapi_document_describes_every_answer(settings: Settings) -> None:
    document = create_app(settings).openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["operationId"], (method, path)
            assert operation.get("summary"), (method, path)
            if path not in PUBLIC:
                assert {"401", "403", "429"} <= set(operation["responses"]), (method, path)
                assert all(scope in SCOPES for need in operation["security"] for scope in need["ApiKey"])
            else:
                assert "security" not in operation
    assert "HTTPValidationError" not in json.dumps(document)
    assert {"unlearn-jobs"} <= {path.split("/")[1] for path in document["paths"]}
