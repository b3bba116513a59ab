"""Versions after the first: aliases, lineage, purging, serving, and what an adapter says of itself."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import Engine, func, select, text
from sqlalchemy.orm import Session

from app.adapters.tables import Adapter, AdapterVersion
from app.attestations.tables import Attestation, SigningKey
from app.jobs.tables import Run, UnlearnJob
from app.kit.storage import LocalStorage
from app.settings import Settings
from tests.app.conftest import post_adapter, post_job, upload

BOT = "/adapters/support-bot"


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A transaction behind the service's back, which the test commits."""
    with Session(engine, expire_on_commit=False) as session:
        yield session


def release(session: Session, storage: LocalStorage, job_id: str | None = None) -> AdapterVersion:
    """What a worker does at the end of a run: a new head, which takes the place of the one before."""
    adapter = session.scalars(select(Adapter).where(Adapter.name == "support-bot").with_for_update()).one()
    source = session.scalars(
        select(AdapterVersion).where(AdapterVersion.adapter_id == adapter.id, AdapterVersion.number == adapter.head)
    ).one()
    job = session.get(UnlearnJob, job_id) if job_id else None
    number = adapter.head + 1
    version = AdapterVersion(
        id=f"av_{number}", tenant_id=adapter.tenant_id, adapter_id=adapter.id, number=number, config=source.config,
        weights_key=f"runs/{number}/weights", weights_sha256="a" * 64, archive_key=f"runs/{number}/archive",
        archive_sha256="b" * 64, archive_bytes=3, source_version=source.number, run_id=job.run_id if job else None,
    )  # fmt: skip
    for key in (version.weights_key, version.archive_key):
        with storage.create(key) as sink:
            sink.write(b"new")
    session.add(version)
    source.status, source.superseded_at, adapter.head = "superseded", func.now(), number
    if job is not None:
        job.status, job.verdict, job.result_version = "succeeded", "passed", number
        session.execute(text("UPDATE runs SET status = 'succeeded' WHERE id = :id"), {"id": job.run_id})
    session.commit()
    return version


@pytest.fixture
def storage(settings: Settings) -> LocalStorage:
    """The service's storage."""
    return LocalStorage(settings.storage_dir)


@pytest.fixture
def second(adapter: str, session: Session, storage: LocalStorage) -> AdapterVersion:
    """Version 2, the head; version 1 is superseded."""
    return release(session, storage)


async def actions(client: httpx.AsyncClient, action: str) -> list[dict[str, Any]]:
    """The audit entries of one action, newest first."""
    found: list[dict[str, Any]] = (await client.get(f"/audit?action={action}")).json()["data"]
    return found


async def point(client: httpx.AsyncClient, alias: str, version: int) -> httpx.Response:
    """Set an alias."""
    return await client.put(f"{BOT}/aliases/{alias}", json={"version": version})


async def test_an_adapter_tells_of_its_head_and_how_it_is_served(
    client: httpx.AsyncClient, second: AdapterVersion
) -> None:
    adapter = (await client.get(BOT)).json()
    assert (adapter["head"], adapter["head_status"], adapter["versions"]) == (2, "ready", 2)
    assert adapter["serving"] == {
        "base_model": "acme/tiny", "revision": None, "rank": 2, "max_lora_rank": 8, "target_modules": ["q_proj"],
    }  # fmt: skip
    assert (await client.get("/adapters")).json()["data"] == [adapter]


async def test_serving_is_told_of_versions_that_are_handed_out_alone(
    client: httpx.AsyncClient, second: AdapterVersion
) -> None:
    serving = (await client.get(f"{BOT}/versions/head/serving")).json()
    assert (serving["adapter"], serving["version"]) == ("support-bot", 2)
    assert "support-bot-v2.tar.gz" in serving["unpack"]
    assert "--max-lora-rank 8" in serving["vllm"]["start"]
    assert (await client.get(f"{BOT}/versions/1/serving")).status_code == 410


async def test_the_readme_of_an_upload_carries_the_same_commands(client: httpx.AsyncClient, adapter: str) -> None:
    serving = (await client.get(f"{BOT}/versions/1/serving")).json()
    archive = (await client.get(f"{BOT}/versions/1/download")).content
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        readme = files.extractfile("README.md")
        assert readme is not None
        card = readme.read().decode()
    for server in ("vllm", "lorax", "tgi"):
        assert serving[server]["start"] in card
        assert serving[server]["request"] in card
    assert serving["peft"] in card


async def test_an_alias_stands_wherever_a_number_does(client: httpx.AsyncClient, second: AdapterVersion) -> None:
    made = await point(client, "production", 2)
    assert made.status_code == 201, made.text
    alias = made.json()
    assert (alias["adapter"], alias["alias"], alias["version"], alias["status"]) == (
        "support-bot", "production", 2, "ready",
    )  # fmt: skip
    for path in ("", "/serving"):
        by_alias = await client.get(f"{BOT}/versions/production{path}")
        assert by_alias.json() == (await client.get(f"{BOT}/versions/2{path}")).json()
    download = await client.get(f"{BOT}/versions/production/download")
    assert (download.status_code, download.content) == (200, b"new")
    assert (await client.get(f"{BOT}/aliases/production")).json() == alias
    assert (await client.get(f"{BOT}/aliases")).json()["data"] == [alias]


async def test_a_moved_alias_is_recorded_by_ids_and_numbers(
    client: httpx.AsyncClient, adapter: str, session: Session, storage: LocalStorage
) -> None:
    assert (await point(client, "production", 1)).status_code == 201
    release(session, storage)
    moved = await point(client, "production", 2)
    assert (moved.status_code, moved.json()["version"]) == (200, 2)
    last, first = await actions(client, "adapter.alias_set")
    assert (last["data"]["number"], last["data"]["before"]) == (2, 1)
    assert (first["data"]["number"], first["data"]["before"]) == (1, None)
    assert last["data"]["alias"] == first["data"]["alias"]
    assert "production" not in str([first, last])


async def test_an_alias_of_a_superseded_version_is_gone_with_a_hint(
    client: httpx.AsyncClient, adapter: str, session: Session, storage: LocalStorage
) -> None:
    await point(client, "production", 1)
    release(session, storage)
    for path in ("", "/serving", "/download"):
        answer = await client.get(f"{BOT}/versions/production{path}")
        assert answer.status_code == 410, path
        assert "PUT /adapters/support-bot/aliases/production" in answer.json()["detail"]
    assert (await client.get(f"{BOT}/aliases/production")).json()["status"] == "superseded"
    # By its number it is still told of.
    assert (await client.get(f"{BOT}/versions/1")).json()["status"] == "superseded"


async def test_an_alias_points_only_at_what_is_handed_out(client: httpx.AsyncClient, second: AdapterVersion) -> None:
    refused = await point(client, "production", 1)
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    unknown = await point(client, "production", 9)
    assert (unknown.status_code, unknown.json()["errors"][0]["pointer"]) == (422, "/version")
    assert (await client.get(f"{BOT}/aliases")).json()["data"] == []


@pytest.mark.parametrize("alias", ["head", "1", "7up", "Production", "-x", ".x", "a" * 65, "a%20b", "²"])
async def test_a_name_that_could_be_a_number_or_the_head_is_no_alias(
    client: httpx.AsyncClient, adapter: str, alias: str
) -> None:
    assert (await point(client, alias, 1)).status_code == 422
    assert (await client.get(f"{BOT}/aliases/{alias}")).status_code == 404


async def test_an_alias_that_was_taken_away_names_nothing(client: httpx.AsyncClient, adapter: str) -> None:
    await point(client, "production", 1)
    assert (await client.delete(f"{BOT}/aliases/production")).status_code == 204
    assert (await client.delete(f"{BOT}/aliases/production")).status_code == 404
    assert (await client.get(f"{BOT}/versions/production")).status_code == 404
    assert (await client.get(f"{BOT}/versions/1")).status_code == 200
    assert len(await actions(client, "adapter.alias_removed")) == 1


async def test_aliases_of_two_adapters_do_not_meet(client: httpx.AsyncClient, adapter: str) -> None:
    assert (await post_adapter(client, name="other-bot")).status_code == 201
    await point(client, "production", 1)
    assert (await client.get("/adapters/other-bot/versions/production")).status_code == 404
    assert (await client.put("/adapters/other-bot/aliases/production", json={"version": 1})).status_code == 201


async def test_a_job_takes_an_alias_as_its_control(client: httpx.AsyncClient, adapter: str, engine: Engine) -> None:
    assert (await post_adapter(client, name="never-trained")).status_code == 201
    with engine.begin() as connection:
        connection.execute(text("UPDATE adapter_versions SET weights_sha256 = id"))
    await client.put("/adapters/never-trained/aliases/reference", json={"version": 1})
    job = await post_job(client, control="never-trained@reference")
    assert job.status_code == 202, job.text
    assert job.json()["control"] == "never-trained@1"
    assert (await post_job(client, control="never-trained@unknown")).json()["errors"][0]["pointer"] == "/control"


async def test_lineage_tells_which_job_made_what_from_what(
    client: httpx.AsyncClient, adapter: str, session: Session, storage: LocalStorage
) -> None:
    job = (await post_job(client, subject_request_id="dsr-7")).json()["id"]
    version = release(session, storage, job)
    session.add(SigningKey(id="key_1", public_key=b"k" * 32))
    session.flush()
    attestation = Attestation(
        id="at_1", tenant_id=version.tenant_id, job_id=job, run_id=str(version.run_id), version_id=version.id,
        key_id="key_1", envelope='{"ü": 1}',
    )  # fmt: skip
    session.add(attestation)
    session.commit()
    lineage = (await client.get(f"{BOT}/lineage")).json()
    assert (lineage["object"], lineage["adapter"], lineage["head"]) == ("lineage", "support-bot", 2)
    assert lineage["edges"] == [{"source": 1, "result": 2, "run_id": version.run_id}]
    new, old = lineage["nodes"]
    assert new["jobs"] == [{"id": job, "method": "blur", "verdict": "passed", "subject_request_id": "dsr-7"}]
    assert new["attestation_sha256"] == hashlib.sha256('{"ü": 1}'.encode()).hexdigest()
    assert (old["version"], old["status"], old["jobs"], old["attestation_sha256"]) == (1, "superseded", [], None)
    assert old["superseded_at"] is not None


async def test_lineage_comes_a_page_at_a_time(
    client: httpx.AsyncClient, adapter: str, session: Session, storage: LocalStorage
) -> None:
    for _ in range(2):
        release(session, storage)
    first = (await client.get(f"{BOT}/lineage?limit=2")).json()
    rest = (await client.get(f"{BOT}/lineage?limit=2&cursor={first['next_cursor']}")).json()
    assert [[node["version"] for node in page["nodes"]] for page in (first, rest)] == [[3, 2], [1]]
    assert [[edge["source"] for edge in page["edges"]] for page in (first, rest)] == [[2, 1], []]
    assert (first["has_more"], rest["has_more"], rest["next_cursor"]) == (True, False, None)


async def test_a_purged_version_leaves_its_receipt_and_no_bytes(
    client: httpx.AsyncClient, second: AdapterVersion, storage: LocalStorage, session: Session
) -> None:
    first = session.scalars(select(AdapterVersion).where(AdapterVersion.number == 1)).one()
    assert storage.size(first.archive_key)
    for _ in range(2):
        assert (await client.delete(f"{BOT}/versions/1")).status_code == 204
    for key in (first.archive_key, first.weights_key):
        with pytest.raises(FileNotFoundError):
            storage.size(key)
    version = (await client.get(f"{BOT}/versions/1")).json()
    assert version["status"] == "purged"
    assert version["purged_at"] is not None
    assert (await client.get(f"{BOT}/versions/1/download")).status_code == 410
    (receipt,) = await actions(client, "adapter.version_purged")
    assert receipt["subject"]["id"] == first.id
    assert receipt["data"] == {
        "adapter": first.adapter_id, "number": 1, "weights_sha256": first.weights_sha256,
        "archive_sha256": first.archive_sha256, "bytes": first.archive_bytes, "reason": "asked",
    }  # fmt: skip


async def test_the_head_is_never_purged(
    client: httpx.AsyncClient, second: AdapterVersion, storage: LocalStorage
) -> None:
    await point(client, "production", 2)
    assert (await client.delete(f"{BOT}/versions/2")).status_code == 409
    for reference in ("head", "production", "9"):
        assert (await client.delete(f"{BOT}/versions/{reference}")).status_code == 404
    assert storage.size(second.archive_key)
    assert (await client.get(f"{BOT}/versions/head/download")).status_code == 200


@pytest.mark.parametrize("status", ["queued", "running"])
async def test_a_control_of_a_live_job_is_not_purged(
    client: httpx.AsyncClient, second: AdapterVersion, session: Session, engine: Engine, status: str
) -> None:
    await post_adapter(client, name="other-bot")
    with engine.begin() as connection:
        connection.execute(text("UPDATE adapter_versions SET weights_sha256 = id"))
    job = (await post_job(client, adapter="other-bot", control="support-bot@1")).json()
    assert job["control"] == "support-bot@1", job
    with engine.begin() as connection:
        connection.execute(text("UPDATE unlearn_jobs SET status = :status"), {"status": status})
    assert (await client.delete(f"{BOT}/versions/1")).status_code == 409
    with engine.begin() as connection:
        connection.execute(text("UPDATE unlearn_jobs SET status = 'failed'"))
        connection.execute(text("UPDATE runs SET status = 'failed'"))
    assert (await client.delete(f"{BOT}/versions/1")).status_code == 204
    assert (await client.post(f"/unlearn-jobs/{job['id']}/retry")).status_code == 409, "its control is gone"
    again = await post_job(client, adapter="other-bot", control="support-bot@1")
    assert again.json()["errors"][0]["pointer"] == "/control"


async def test_what_a_run_works_on_is_not_purged(
    client: httpx.AsyncClient, second: AdapterVersion, session: Session
) -> None:
    adapter = session.scalars(select(Adapter)).one()
    run = Run(
        id="run_x", tenant_id=adapter.tenant_id, adapter_id=adapter.id, status="running", lease_until=func.now(),
        source_version=1,
    )  # fmt: skip
    session.add(run)
    session.commit()
    assert (await client.delete(f"{BOT}/versions/1")).status_code == 409


async def test_the_default_retain_set_is_set_and_cleared(client: httpx.AsyncClient, adapter: str) -> None:
    retain = await upload(client, "retain", {"text": "x"})
    for value in (retain, None):
        answer = await client.patch(BOT, json={"default_retain_set": value})
        assert (answer.status_code, answer.json()["default_retain_set"]) == (200, value)
    cleared, made = [entry["data"] for entry in await actions(client, "adapter.default_retain_set")]
    assert made == {"dataset": retain, "before": None}
    assert cleared == {"dataset": None, "before": retain}


async def test_a_default_retain_set_must_be_a_retain_set_of_ours(
    client: httpx.AsyncClient, foreign: httpx.AsyncClient, adapter: str
) -> None:
    forget, theirs = await upload(client, "forget", {"text": "x"}), await upload(foreign, "retain", {"text": "x"})
    for body in ({"default_retain_set": forget}, {"default_retain_set": theirs}, {"default_retain_set": "\x00"}, {}):
        answer = await client.patch(BOT, json=body)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/default_retain_set"
    assert (await client.patch(BOT, json={"default_retain_set": None, "head": 7})).status_code == 422
    assert await actions(client, "adapter.default_retain_set") == []


async def test_a_job_that_comes_while_its_control_is_purged_is_refused(
    client: httpx.AsyncClient, second: AdapterVersion, session: Session, engine: Engine
) -> None:
    await post_adapter(client, name="other-bot")
    with engine.begin() as connection:
        connection.execute(text("UPDATE adapter_versions SET weights_sha256 = id"))
    first = select(AdapterVersion).where(AdapterVersion.number == 1, AdapterVersion.status == "superseded")
    version = session.scalars(first.with_for_update()).one()
    async with anyio.create_task_group() as group:
        answers: list[httpx.Response] = []

        async def ask() -> None:
            answers.append(await post_job(client, adapter="other-bot", control="support-bot@1"))

        group.start_soon(ask)
        with anyio.fail_after(30), engine.connect() as other:
            waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            while not other.execute(waiting).scalar_one():
                await anyio.sleep(0.01)
        version.status = "purged"
        session.commit()
    assert (answers[0].status_code, answers[0].json()["errors"][0]["pointer"]) == (422, "/control")
