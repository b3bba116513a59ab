"""Keys for everybody, attestations for their tenant, and what a rotation leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, select, update
from sqlalchemy.orm import Session

from app.adapters.tables import Adapter, AdapterVersion
from app.attestations.keys import record_use
from app.attestations.repository import AttestationRepository
from app.attestations.tables import Attestation, SigningKey
from app.attestations.verify import read_keys, verify_archive
from app.jobs.tables import UnlearnJob
from app.kit.signing import PrivateKey, PublicKey
from tests.app.attestations.release import KEY, packed, release, signed, zipped
from tests.app.conftest import post_job


def use(engine: Engine, key: PublicKey) -> None:
    """What a worker does before it signs."""
    with Session(engine) as session, session.begin():
        record_use(session, key)


def release_job(engine: Engine, job: dict[str, Any]) -> None:
    """What a worker does when a job's result is released."""
    use(engine, KEY.public)
    with Session(engine) as session, session.begin():
        adapter = session.scalars(select(Adapter)).one()
        common = {"tenant_id": adapter.tenant_id, "run_id": job["run_id"]}
        session.add(
            AdapterVersion(
                id="av_2", adapter_id=adapter.id, number=2, config={}, weights_key="k", weights_sha256="0" * 64,
                archive_key="k", archive_sha256="0" * 64, archive_bytes=1, **common,
            )
        )  # fmt: skip
        session.flush()
        session.add(
            Attestation(
                id="att_1", job_id=job["id"], version_id="av_2", key_id=KEY.public.key_id,
                envelope=signed().decode(), **common,
            )
        )  # fmt: skip
        session.execute(update(UnlearnJob).values(status="succeeded", result_version=2))


@pytest.fixture
async def job(client: httpx.AsyncClient, adapter: str) -> dict[str, Any]:
    """An accepted job."""
    accepted: dict[str, Any] = (await post_job(client)).json()
    return accepted


async def test_keys_are_shown_to_callers_without_a_key(anonymous: httpx.AsyncClient, engine: Engine) -> None:
    assert (await anonymous.get("/keys")).json() == {
        "object": "list", "data": [], "has_more": False, "next_cursor": None,
    }  # fmt: skip
    use(engine, KEY.public)
    response = await anonymous.get("/keys")
    assert response.status_code == 200
    shown = response.json()["data"][0]
    assert shown.pop("created_at").endswith("Z")
    assert shown == {
        "object": "signing_key", "key_id": KEY.public.key_id, "algorithm": "ed25519",
        "public_key": KEY.public.base64, "public_key_pem": KEY.public.pem, "retired_at": None,
    }  # fmt: skip


async def test_what_a_replaced_key_signed_verifies_with_the_keys_of_today(
    anonymous: httpx.AsyncClient, engine: Engine, tmp_path: Path
) -> None:
    before, new = zipped(packed(release())), PrivateKey.generate()
    use(engine, KEY.public)
    use(engine, new.public)
    (tmp_path / "keys.json").write_bytes((await anonymous.get("/keys")).content)
    keys = read_keys(tmp_path / "keys.json")
    assert verify_archive(before, keys).key_id == KEY.public.key_id
    after = zipped(packed(release(**{"attestation.dsse.json": signed(key=new)})))
    assert verify_archive(after, keys).key_id == new.public.key_id


async def test_a_new_key_retires_the_one_before_and_is_listed_first(
    anonymous: httpx.AsyncClient, engine: Engine
) -> None:
    new = PrivateKey.generate().public
    use(engine, KEY.public)
    use(engine, new)
    shown = (await anonymous.get("/keys")).json()["data"]
    assert [one["key_id"] for one in shown] == [new.key_id, KEY.public.key_id]
    assert [one["retired_at"] is None for one in shown] == [True, False]


async def test_a_worker_that_still_has_the_old_key_changes_nothing(
    anonymous: httpx.AsyncClient, engine: Engine
) -> None:
    new = PrivateKey.generate().public
    for key in (KEY.public, new):
        use(engine, key)
    before = (await anonymous.get("/keys")).json()
    for key in (KEY.public, new, KEY.public):
        use(engine, key)
    assert (await anonymous.get("/keys")).json() == before


def test_a_key_s_time_of_retirement_is_the_first(engine: Engine) -> None:
    use(engine, KEY.public)
    use(engine, PrivateKey.generate().public)
    with Session(engine) as session:
        first = session.get_one(SigningKey, KEY.public.key_id).retired_at
    use(engine, PrivateKey.generate().public)
    with Session(engine) as session:
        assert session.get_one(SigningKey, KEY.public.key_id).retired_at == first


async def test_unauthenticated_callers_get_no_attestation(
    anonymous: httpx.AsyncClient, engine: Engine, job: dict[str, Any]
) -> None:
    release_job(engine, job)
    assert (await anonymous.get(f"/unlearn-jobs/{job['id']}/attestation")).status_code == 401


async def test_another_tenant_finds_no_attestation(
    foreign: httpx.AsyncClient, engine: Engine, job: dict[str, Any]
) -> None:
    release_job(engine, job)
    assert (await foreign.get(f"/unlearn-jobs/{job['id']}/attestation")).status_code == 404


async def test_a_query_for_another_tenant_finds_nothing_even_by_the_job_s_id(
    app: FastAPI, engine: Engine, job: dict[str, Any]
) -> None:
    release_job(engine, job)
    async with app.state.sessions() as session:
        assert await AttestationRepository(session, "ten_theirs").by_job(job["id"]) is None
        assert await AttestationRepository(session, "ten_ours").by_job(job["id"]) is not None


async def test_an_attestation_is_the_file_of_the_archive(
    client: httpx.AsyncClient, engine: Engine, job: dict[str, Any]
) -> None:
    release_job(engine, job)
    response = await client.get(f"/unlearn-jobs/{job['id']}/attestation")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.content == signed()


async def test_before_the_release_the_state_is_told(client: httpx.AsyncClient, job: dict[str, Any]) -> None:
    response = await client.get(f"/unlearn-jobs/{job['id']}/attestation")
    assert response.status_code == 409
    assert "the job is queued" in response.json()["detail"]


async def test_a_release_from_before_attestations_has_none(
    client: httpx.AsyncClient, engine: Engine, job: dict[str, Any]
) -> None:
    with Session(engine) as session, session.begin():
        session.execute(update(UnlearnJob).values(status="succeeded", result_version=2))
    response = await client.get(f"/unlearn-jobs/{job['id']}/attestation")
    assert response.status_code == 404
    assert "before results were attested" in response.json()["detail"]
