"""Links: whoever has one may download one version for a while, and nothing else."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import datetime
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from app.adapters.links.token import Link, read, sign
from app.kit.crypto import derive_key
from tests.app.conftest import PEPPER

LINKS = "/adapters/support-bot/versions/head/links"
LINK = Link("ten_a", "av_b", "c" * 64, 2_000_000_000)


async def link(client: httpx.AsyncClient, **body: int) -> str:
    """The path of a new link."""
    answer = await client.post(LINKS, json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["url"]).removeprefix("http://lethe.test")


def opened(path: str) -> Link:
    """What a link's token says."""
    found = read(path.removeprefix("/downloads/"), PEPPER)
    assert found is not None
    return found


async def test_a_link_downloads_without_a_key(
    client: httpx.AsyncClient, anonymous: httpx.AsyncClient, adapter: str
) -> None:
    answer = await client.post(LINKS)
    made = answer.json()
    whole = await client.get("/adapters/support-bot/versions/1/download")
    assert (made["adapter"], made["version"], made["bytes"]) == ("support-bot", 1, len(whole.content))
    assert datetime.fromisoformat(made["expires_at"]).timestamp() == pytest.approx(time.time() + 900, abs=60)
    assert answer.headers["cache-control"] == "private, no-store"
    got = await anonymous.get(made["url"])
    assert (got.status_code, got.content) == (200, whole.content)
    assert (got.headers["cache-control"], got.headers["referrer-policy"]) == ("private, no-store", "no-referrer")
    assert got.headers["etag"] == f'"{made["sha256"]}"'
    assert (await anonymous.head(made["url"])).headers["content-length"] == str(made["bytes"])
    assert (await anonymous.get(made["url"], headers={"Range": "bytes=5-9"})).content == whole.content[5:10]
    assert (await anonymous.get(made["url"], headers={"If-None-Match": got.headers["etag"]})).status_code == 304


async def test_a_link_ends_when_its_version_is_superseded(
    client: httpx.AsyncClient, anonymous: httpx.AsyncClient, adapter: str, engine: Engine
) -> None:
    path = await link(client)
    with engine.begin() as connection:
        connection.execute(text("UPDATE adapter_versions SET status = 'superseded'"))
    refused = await anonymous.get(path)
    assert (refused.status_code, refused.json()["code"]) == (410, "gone")
    assert (refused.headers["cache-control"], refused.headers["referrer-policy"]) == (
        "private, no-store", "no-referrer",
    )  # fmt: skip
    assert (await client.post(LINKS)).status_code == 410, "and no new one is made"


async def test_a_link_that_has_expired_is_gone(
    client: httpx.AsyncClient, anonymous: httpx.AsyncClient, adapter: str
) -> None:
    past = replace(opened(await link(client)), expires=int(time.time()) - 1)
    refused = await anonymous.get(f"/downloads/{sign(past, PEPPER)}")
    assert (refused.status_code, refused.json()["code"]) == (410, "gone")
    assert "expired" in refused.json()["detail"]


async def test_a_link_leads_to_its_tenant_and_archive_alone(
    client: httpx.AsyncClient, anonymous: httpx.AsyncClient, foreign: httpx.AsyncClient, adapter: str
) -> None:
    good = opened(await link(client))
    for other in (replace(good, tenant_id="ten_theirs"), replace(good, sha256="0" * 64), LINK):
        assert (await anonymous.get(f"/downloads/{sign(other, PEPPER)}")).status_code == 410
    assert (await foreign.post(LINKS)).status_code == 404


async def test_a_changed_link_is_no_link(
    client: httpx.AsyncClient, anonymous: httpx.AsyncClient, adapter: str
) -> None:
    path = await link(client)
    later = path.replace(str(opened(path).expires), str(opened(path).expires + 1000))
    for changed in (later, path[:-1], path + "A", path[:-2] + "-_", "/downloads/x"):
        answer = await anonymous.get(changed)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), changed
        assert answer.headers["cache-control"] == "private, no-store"


@pytest.mark.parametrize("field", ["tenant_id", "version_id", "sha256", "expires"])
def test_the_mac_is_over_everything_that_the_token_says(field: str) -> None:
    good = sign(LINK, PEPPER)
    changes: dict[str, Any] = {"tenant_id": "x_y", "version_id": "x_y", "sha256": "d" * 64, "expires": 2_000_000_001}
    other = replace(LINK, **{field: changes[field]})
    forged = sign(other, PEPPER).rpartition(".")[0] + "." + good.rpartition(".")[2]
    assert read(good, PEPPER) == LINK
    assert read(forged, PEPPER) is None
    assert read(good, b"q" * 32) is None


def test_a_mac_has_one_spelling() -> None:
    """The last of 43 letters carries four bits: others decode to the same bytes."""
    good = sign(LINK, PEPPER)
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    accepted = [letter for letter in letters if read(good[:-1] + letter, PEPPER)]
    assert accepted == [good[-1]]


def test_keys_are_apart_by_purpose() -> None:
    assert derive_key(PEPPER, "a") != derive_key(PEPPER, "b") != PEPPER
    assert len(derive_key(PEPPER, "a")) == 32


@pytest.mark.parametrize("seconds", [0, -1, 86_401, 10**12])
async def test_a_link_lasts_a_day_at_most(client: httpx.AsyncClient, adapter: str, seconds: int) -> None:
    refused = await client.post(LINKS, json={"expires_in": seconds})
    assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "/expires_in")


async def test_a_link_is_recorded_and_its_token_kept_nowhere(
    client: httpx.AsyncClient,
    anonymous: httpx.AsyncClient,
    adapter: str,
    engine: Engine,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = await link(client, expires_in=60)
    await anonymous.get(path)
    await anonymous.get(path + "x")
    (entry,) = (await client.get("/audit?action=adapter.link_made")).json()["data"]
    said = opened(path)
    assert entry["subject"] == {"type": "adapter_version", "id": said.version_id}
    assert entry["data"] == {
        "adapter": entry["data"]["adapter"], "number": 1, "archive_sha256": said.sha256, "expires_in": 60,
    }  # fmt: skip
    assert path.rpartition(".")[2] not in str(entry) + capsys.readouterr().out
