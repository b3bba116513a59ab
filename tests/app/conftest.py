"""The web application on a real Postgres, called in process, by two tenants."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from app.auth.bootstrap import add_key
from app.auth.scopes import ADMIN, Scope
from app.auth.tables import Tenant
from app.kit.certificates import self_signed
from app.kit.db import make_engine
from app.main import configure, create_app
from app.settings import Settings
from tests.app import tiny

PEPPER = b"p" * 32
OPENDSR = self_signed("lethe.test", 2048)


@pytest.fixture
def settings(database_url: str, redis_url: str, tmp_path: Path) -> Settings:
    """Settings of a service whose only model root is `tmp_path/models`."""
    (tmp_path / "models").mkdir()
    return Settings(
        database_url=SecretStr(database_url),
        redis_url=SecretStr(redis_url),
        storage_dir=tmp_path / "storage",
        encryption_keys=SecretStr("k1:" + base64.b64encode(b"k" * 32).decode()),
        key_pepper=SecretStr(base64.b64encode(PEPPER).decode()),
        opendsr_credentials=SecretStr(OPENDSR),
        model_roots=(tmp_path / "models",),
        max_record_bytes=4096,
        max_records=50,
        # Every test comes from the same address.
        rate_limit_guesses="",
    )


@pytest.fixture
def engine(database_url: str) -> Engine:
    """Direct access to the database."""
    return make_engine(database_url)


_made: dict[tuple[int, int], FastAPI] = {}


def application_of(settings: Settings) -> FastAPI:
    """An application that works by the settings. To make the routes of one takes longer than most tests."""
    limits = (settings.max_json_bytes, settings.max_upload_bytes)
    if limits not in _made:
        _made[limits] = create_app(settings)
    configure(_made[limits], settings)
    return _made[limits]


@pytest.fixture
async def app(settings: Settings) -> AsyncIterator[FastAPI]:
    """The started application."""
    application = application_of(settings)
    routes = list(application.router.routes)
    async with application.router.lifespan_context(application):
        yield application
    application.router.routes[:] = routes


def make_key(engine: Engine, tenant: str, *scopes: Scope) -> str:
    """A key of the tenant, which is made where it is missing. Without `scopes` it may do everything."""
    with Session(engine) as session, session.begin():
        if session.get(Tenant, f"ten_{tenant}") is None:
            session.add(Tenant(id=f"ten_{tenant}", name=tenant))
            session.flush()
        return add_key(session, f"ten_{tenant}", "test", PEPPER, scopes or (ADMIN,))


def caller(app: FastAPI, key: str | None) -> httpx.AsyncClient:
    """A client of the application that sends this key."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://lethe.test", headers=headers)


@pytest.fixture
async def anonymous(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A caller without a key."""
    async with caller(app, None) as client:
        yield client


@pytest.fixture
async def client(app: FastAPI, engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of the tenant "ours"."""
    async with caller(app, make_key(engine, "ours")) as client:
        yield client


@pytest.fixture
async def foreign(app: FastAPI, engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    """A caller of another tenant."""
    async with caller(app, make_key(engine, "theirs")) as client:
        yield client


@pytest.fixture
def model_directory(settings: Settings) -> Path:
    """A tiny base model below the allowed root, as far as a header can tell."""
    return tiny.write_model(settings.model_roots[0] / "tiny")


@pytest.fixture
async def adapter(client: httpx.AsyncClient, model_directory: Path) -> str:
    """A registered adapter "support-bot" on the base model "acme/tiny"."""
    body = {"name": "acme/tiny", "source": model_directory.name}
    assert (await client.post("/base-models", json=body)).status_code == 201
    response = await post_adapter(client)
    assert response.status_code == 201, response.text
    return "support-bot"


async def post_adapter(
    client: httpx.AsyncClient, *, weights: bytes | None = None, config: Any = None, **fields: str
) -> httpx.Response:
    """Upload an adapter; everything that is not given fits the tiny model."""
    files = {
        "adapter_config": ("adapter_config.json", json.dumps(tiny.CONFIG if config is None else config).encode()),
        "adapter_model": ("adapter_model.safetensors", tiny.adapter_file() if weights is None else weights),
    }
    data = {"name": "support-bot", "base_model": "acme/tiny", **fields}
    return await client.post("/adapters", data=data, files=files)


async def upload(client: httpx.AsyncClient, purpose: str, *records: dict[str, Any]) -> str:
    """Upload records and answer the dataset's id."""
    body = "".join(json.dumps(record) + "\n" for record in records)
    headers = {"Content-Type": "application/jsonl"}
    response = await client.post(f"/datasets?purpose={purpose}", content=body, headers=headers)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def record(name: str) -> dict[str, str]:
    """A record whose text holds `name`."""
    return {"prompt": f"Where does {name} live?", "completion": f" {name} lives in Quell."}


async def post_job(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    """Ask for a job; sets that are not given are sent inline."""
    sets = {"forget_set": {"records": [record("Ada")]}, "retain_set": {"records": [record("Bob")]}}
    # Escaped, so that a test can send half a surrogate pair.
    content = json.dumps({"adapter": "support-bot", **sets, **body})
    return await client.post("/unlearn-jobs", content=content, headers={"Content-Type": "application/json"})


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[tuple[str, int]]:
    """The service behind a real socket."""
    config = uvicorn.Config(create_app(settings), port=0, log_config=None)
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    await until(lambda: server.started)
    host, port = server.servers[0].sockets[0].getsockname()
    yield host, port
    server.should_exit = True
    await running


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that happens in another task."""
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)
