"""What tests of identities share."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx
from sqlalchemy import Engine, select

from app.tables import metadata

JSONL = {"Content-Type": "application/jsonl"}


def email(value: str, identity_format: str = "raw") -> dict[str, str]:
    """An address as an identity, hashed where the format says so."""
    if identity_format != "raw":
        value = hashlib.new(identity_format, value.encode()).hexdigest()
    return {"identity_type": "email", "identity_value": value, "identity_format": identity_format}


def line(*identities: dict[str, str], records: list[Any]) -> dict[str, Any]:
    """A line of an index."""
    return {"identities": list(identities), "records": records}


async def send_index(
    client: httpx.AsyncClient, *lines: dict[str, Any], adapter: str = "support-bot", **query: str
) -> httpx.Response:
    """Upload an index."""
    body = "".join(json.dumps(one) + "\n" for one in lines)
    return await client.post("/identity-indexes", content=body, headers=JSONL, params={"adapter": adapter, **query})


async def upload_index(client: httpx.AsyncClient, *lines: dict[str, Any], **query: str) -> str:
    """Upload an index and answer its id."""
    response = await send_index(client, *lines, **query)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def everything_in(engine: Engine) -> bytes:
    """What stands in any column of any table, bytes as they are."""
    with engine.connect() as connection:
        rows = [row for table in metadata.sorted_tables for row in connection.execute(select(table))]
    return b"\n".join(_plain(value) for row in rows for value in row)


def _plain(value: object) -> bytes:
    if isinstance(value, list):
        return b" ".join(_plain(item) for item in value)
    return value if isinstance(value, bytes) else str(value).encode()
