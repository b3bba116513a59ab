"""What the API is compared with: FastAPI and psycopg with nothing of Lethe, started by ``uvicorn --factory``.

It does the least that could be called the same: it validates a body of the same shape, inserts one row, commits,
and answers with it; or it selects that row. No keys, no tenants, no audit, no events, no log line. Its pool is as
large as the API's, and it is used as psycopg's documentation shows: a connection from the pool for the request, whose
transaction is committed at its end.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import AsyncConnectionPool
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

DATABASE = "LETHE_BENCH_DATABASE"
TABLE = """
CREATE TABLE IF NOT EXISTS bare_jobs (
    id text PRIMARY KEY, status text NOT NULL DEFAULT 'queued', adapter text NOT NULL, forget_set text NOT NULL,
    retain_set text NOT NULL, method jsonb NOT NULL, subject_request_id text, requested_at timestamptz,
    metadata jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now())
"""
INSERT = """
INSERT INTO bare_jobs (id, adapter, forget_set, retain_set, method, subject_request_id, requested_at, metadata)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s) RETURNING *
"""
SELECT = "SELECT * FROM bare_jobs WHERE id = %s"


class Method(BaseModel):
    """A nested part of the body."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["blur"] = "blur"
    gamma: float | Literal["auto"] = "auto"
    epochs: Annotated[int, Field(ge=1, le=100)] = 10


class JobCreate(BaseModel):
    """A body as the API's."""

    model_config = ConfigDict(extra="forbid")

    adapter: Annotated[str, Field(max_length=64, pattern=r"^[a-z0-9][a-z0-9._-]*$")]
    forget_set: Annotated[str, Field(min_length=1, max_length=64)]
    retain_set: Annotated[str, Field(min_length=1, max_length=64)]
    method: Method = Method()
    subject_request_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    requested_at: AwareDatetime | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] = {}


class JobRead(BaseModel):
    """The row."""

    id: str
    status: str
    adapter: str
    forget_set: str
    retain_set: str
    method: Method
    subject_request_id: str | None
    requested_at: datetime | None
    metadata: dict[str, str]
    created_at: datetime


def create_app() -> FastAPI:
    """Build the application."""
    app = FastAPI(lifespan=_lifespan)
    app.add_api_route("/jobs", create, methods=["POST"], status_code=202)
    app.add_api_route("/jobs/{job_id}", get, methods=["GET"])
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    kwargs = {"row_factory": dict_row}
    async with AsyncConnectionPool(os.environ[DATABASE], min_size=10, max_size=20, kwargs=kwargs) as pool:
        async with pool.connection() as connection:
            await connection.execute(TABLE)
        app.state.pool = pool
        yield


async def create(body: JobCreate, request: Request) -> JobRead:
    """Insert one row."""
    values = (
        f"job_{secrets.token_hex(12)}",
        body.adapter,
        body.forget_set,
        body.retain_set,
        Jsonb(body.method.model_dump()),
        body.subject_request_id,
        body.requested_at,
        Jsonb(body.metadata),
    )
    return JobRead.model_validate(await _one(request, INSERT, values))


async def get(job_id: str, request: Request) -> JobRead:
    """Select one row."""
    row = await _one(request, SELECT, (job_id,))
    if row is None:
        raise HTTPException(404)
    return JobRead.model_validate(row)


async def _one(request: Request, statement: str, values: tuple[object, ...]) -> dict[str, Any] | None:
    async with request.app.state.pool.connection() as connection:
        cursor = await connection.execute(statement, values)
        row: dict[str, Any] | None = await cursor.fetchone()
    return row
