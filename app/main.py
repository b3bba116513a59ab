"""The web application. ``uvicorn app.main:create_app --factory``."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from sqlalchemy.ext.asyncio import async_sessionmaker

from app import catalogue
from app.adapters.aliases.endpoints import router as aliases
from app.adapters.endpoints import router as adapters
from app.adapters.links.endpoints import router as links
from app.attestations.endpoints import router as attestations
from app.audit.endpoints import router as audit
from app.auth.authentication import authenticate
from app.auth.endpoints import router as api_keys
from app.auth.guesses import Guesses
from app.auth.last_use import LastUse
from app.auth.limits import RateLimits
from app.auth.oidc import TokenVerifier
from app.base_models.endpoints import router as base_models
from app.datasets.endpoints import router as datasets
from app.entrance import Entrance
from app.health.endpoints import router as health
from app.identities.endpoints import router as identities
from app.jobs.endpoints import router as jobs
from app.jobs.events.endpoints import router as job_events
from app.jobs.events.places import StreamPlaces
from app.jobs.quota import JobQuota
from app.kit import logs, problems
from app.kit.body_limit import BodyLimit
from app.kit.db import make_async_engine
from app.kit.driver import Reads
from app.kit.storage import LocalStorage
from app.openapi import describe
from app.opendsr.endpoints import router as opendsr
from app.problems.endpoints import router as problem_kinds
from app.settings import Settings, get_settings
from app.webhooks import openapi as webhooks_section
from app.webhooks.endpoints import router as webhooks

DESCRIPTION = """\
Removes chosen records from LoRA adapters of causal language models: upload the records, ask for a job, poll it,
download the unlearned adapter. Errors are `application/problem+json` (RFC 9457) and never quote what was sent.
"""


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application. Connections are opened when it starts and closed when it ends."""
    settings = settings or get_settings()
    logs.configure()
    app = FastAPI(
        title="Lethe",
        version=version("lethe"),
        description=DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
    )
    configure(app, settings)
    problems.install(app)
    uploads = dict.fromkeys(("/datasets", "/adapters", "/identity-indexes"), settings.max_upload_bytes)
    app.add_middleware(BodyLimit, usual=settings.max_json_bytes, uploads=uploads)
    app.add_middleware(Entrance, authenticate=authenticate)
    # Asked in this order whether a path is theirs: first those that are called all the time.
    for router in (
        jobs,
        health,
        base_models,
        adapters,
        aliases,
        links,
        datasets,
        identities,
        job_events,
        opendsr,
        attestations,
        audit,
        webhooks,
        catalogue.router,
        problem_kinds,
        api_keys,
    ):
        app.include_router(router)
    webhooks_section.describe(app)
    _describe(app)
    return app


def configure(app: FastAPI, settings: Settings) -> None:
    """Have an application that is not started work by these settings. Its limits on bodies stay as it was made."""
    app.state.settings = settings
    app.state.tokens = TokenVerifier.of(settings)
    app.state.job_quota = JobQuota(settings.max_live_jobs)
    app.state.stream_places = StreamPlaces(settings.max_event_streams, settings.max_tenant_event_streams)
    app.state.storage = LocalStorage(settings.storage_dir)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    url = app.state.settings.database_url.get_secret_value()
    engine, app.state.reads = make_async_engine(url), Reads(url)
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    app.state.last_use = LastUse(app.state.sessions)
    app.state.rate_limits = RateLimits.of(app.state.settings)
    app.state.guesses = Guesses(app.state.rate_limits)
    await app.state.reads.open()
    # What is there now stays: without it in the way, collecting garbage takes a fraction of a request's time.
    if not gc.get_freeze_count():
        gc.freeze()
    yield
    await app.state.last_use.finish()
    await app.state.rate_limits.close()
    await app.state.reads.close()
    await engine.dispose()


def _describe(app: FastAPI) -> None:
    """Complete the OpenAPI document when it is first asked for."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = generate()
            describe(document, iter_route_contexts(app.routes))
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's documented way to extend the document
