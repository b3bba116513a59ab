"""What a request would come to: the sets in tokens, the plan, its estimate and warnings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from app.base_models.tables import BaseModelRow
from app.datasets import statistics
from app.datasets.intake import Intake, Limits
from app.datasets.tables import Dataset
from app.datasets.tokenizer_files import counter_of
from app.datasets.vault import Vault
from app.evaluations.tables import EvaluationRow
from app.jobs.estimate import EarlierRun, estimate
from app.jobs.plan import DUE_SOON
from app.jobs.quota import JobQuota
from app.jobs.schemas import JobStatistics
from app.kit.crypto import KeyRing
from app.kit.db import Base
from app.kit.memory_storage import MemoryStorage
from app.methods import BlurRequest, Cycles, Stretch
from app.settings import Settings
from tests.app.conftest import post_job, record, upload
from tests.app.evaluations import documents

pytestmark = pytest.mark.usefixtures("adapter")
DEMO = Path(__file__).parents[2] / "examples" / "demo" / "base"
MARKER = "Zanzibar-Quux-4711"


async def plan(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    """The plan of a request; sets that are not given are sent inline."""
    response = await dry_run(client, **body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def dry_run(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    """As `post_job`, without making a job."""
    sets = {"forget_set": {"records": [record("Ada")]}, "retain_set": {"records": [record("Bob")]}}
    return await client.post("/unlearn-jobs?dry_run=true", json={"adapter": "support-bot", **sets, **body})


def everything(engine: Engine, settings: Settings) -> dict[str, Any]:
    """Every row of every table, and every byte in storage."""
    with engine.connect() as connection:
        rows: dict[str, Any] = {
            name: sorted(connection.scalars(text(f'SELECT t::text FROM "{name}" t')))  # noqa: S608
            for name in Base.metadata.tables
        }
    files = {str(path): path.read_bytes() for path in settings.storage_dir.rglob("*") if path.is_file()}
    folders = sorted(str(path) for path in settings.storage_dir.rglob("*") if path.is_dir())
    return rows | {"files": files, "folders": folders}


@pytest.fixture
def tokenizer(model_directory: Path) -> Path:
    """The base model with the demo's tokenizer. Counting was impossible before."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, model_directory)
    return model_directory


async def test_a_dry_run_creates_nothing(client: httpx.AsyncClient, engine: Engine, settings: Settings) -> None:
    retain = await upload(client, "retain", record("Bob"))
    before = everything(engine, settings)
    assert set(before) > {"unlearn_jobs", "datasets", "outbox", "audit_entries", "files"}
    headers = {"Idempotency-Key": "k-1"}
    body: dict[str, Any] = {"adapter": "support-bot", "retain_set": retain, "seed": 3}
    body |= {"forget_set": {"records": [record(MARKER)]}, "callback_url": "https://example.org/hook"}
    holdout, shared = {"records": [record("Nobody")]}, {"records": [record("Bob")]}
    for changes, status in (({}, 200), ({"holdout_set": holdout}, 200), ({"forget_set": shared}, 422)):
        response = await client.post("/unlearn-jobs?dry_run=true", json=body | changes, headers=headers)
        assert response.status_code == status, response.text
        assert MARKER not in response.text
    assert everything(engine, settings) == before
    # The key is not taken either: another request may still use it.
    assert (await client.post("/unlearn-jobs", json=body | {"seed": 4}, headers=headers)).status_code == 202


async def test_a_plan_is_what_the_job_becomes(client: httpx.AsyncClient, tokenizer: Path) -> None:
    forget = await upload(client, "forget", record("Ada"), record("Eve"), {"id": "2", **record("Eve")})
    body = {"forget_set": forget, "method": {"steps": 7}, "policy": {"max_sampled_leak": 0.1}, "seed": 5}
    body["requested_at"] = "2026-01-31T12:00:00Z"
    found, job = await plan(client, **body), (await post_job(client, **body)).json()
    for name in ("adapter", "method", "policy", "seed", "requested_at", "due_at", "control"):
        assert found[name] == job[name], name
    assert (found["source_version"], found["base_model"]) == (1, "acme/tiny")
    # Nobody can ask for a dataset that was not kept.
    assert (found["statistics"]["retain"].pop("dataset"), job["statistics"]["retain"].pop("dataset")) == (
        None,
        job["retain_set"],
    )
    assert found["statistics"] == job["statistics"]
    assert job["statistics"]["forget"]["duplicates"] == 1
    assert (await client.get(f"/unlearn-jobs/{job['id']}")).json()["statistics"]["forget"]["dataset"] == forget


async def test_a_seed_that_would_be_drawn_is_null(client: httpx.AsyncClient) -> None:
    assert (await plan(client))["seed"] is None


@pytest.mark.parametrize(
    "body",
    [
        {"adapter": "nobody"},
        {"forget_set": "ds_none"},
        {"retain_set": None},
        {"forget_set": {"records": [record("Bob"), record("Ada")]}},
        {"forget_set": {"records": [{"prompt": MARKER}]}},
        {"forget_set": {"records": [{"text": "x" * 5000}]}},
        {"holdout_set": {"records": [record("Cy"), record("Ada")]}},
        {"policy": "audit"},
        {"control": "support-bot"},
        {"colour": "red"},
        {"callback_url": "http://127.0.0.1/"},
    ],
)
async def test_a_dry_run_refuses_what_the_job_would_be_refused_for(
    client: httpx.AsyncClient, body: dict[str, Any]
) -> None:
    dry, real = await dry_run(client, **body), await post_job(client, **body)
    assert real.status_code in {413, 422}
    assert dry.status_code == real.status_code
    assert {**dry.json(), "request_id": 0} == {**real.json(), "request_id": 0}


async def test_shared_records_of_an_inline_set_are_named_by_number(client: httpx.AsyncClient) -> None:
    both = {"records": [record("Cy"), record("Ada")]}
    detail = (await post_job(client, retain_set=both)).json()["errors"][0]["detail"]
    assert "shares 1 record(s) with the forget set, at its record 2" in detail


async def test_a_foreign_set_is_not_planned_with(client: httpx.AsyncClient, foreign: httpx.AsyncClient) -> None:
    theirs = await upload(foreign, "forget", record("Ada"))
    assert (await dry_run(client, forget_set=theirs)).json()["errors"][0]["pointer"] == "/forget_set"
    assert (await dry_run(foreign)).json()["errors"][0]["pointer"] == "/adapter"


async def test_tokens_are_counted_and_long_records_told(client: httpx.AsyncClient, tokenizer: Path) -> None:
    (tokenizer / "config.json").write_text(json.dumps({"max_position_embeddings": 20}))
    words = [3, 30, 5]
    forget = {"records": [{"text": " ".join(["Ada"] * count)} for count in words]}
    found = await plan(client, forget_set=forget)
    tokens = found["statistics"]["forget"]["tokens"]
    lengths = sorted(len_of(tokenizer, " ".join(["Ada"] * count)) for count in words)
    assert (tokens["min"], tokens["median"], tokens["max"]) == tuple(lengths)
    assert (tokens["total"], tokens["counted"], tokens["sampled"]) == (sum(lengths), 3, False)
    # The context is shorter than the method's max_length. Windows overlap by one token.
    longest, window = lengths[-1], 20
    assert (tokens["max_length"], tokens["longer"]) == (window, 1)
    assert tokens["sequences"] == 2 + -(-(longest - 1) // (window - 1))
    messages = {warning["code"]: warning["message"] for warning in found["warnings"]}
    assert "1 record(s) of the forget set have more than 20 tokens" in messages["records_too_long"]


def len_of(directory: Path, words: str) -> int:
    """Tokens of a text, its end token included."""
    counter = counter_of(directory)
    assert counter is not None
    return counter.count({"text": words}).tokens


async def test_a_large_set_is_sampled_and_says_so(
    client: httpx.AsyncClient, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(statistics, "_SPOT_BYTES", 1)
    # Texts that differ and have equally many tokens.
    texts = [
        " ".join(["Ada"] * 400 + ["Ada" if (number >> bit) & 1 else "Bob" for bit in range(6)])
        for number in range(50)
    ]
    retain = await upload(client, "retain", *[{"text": each} for each in texts])
    tokens = (await plan(client, retain_set=retain))["statistics"]["retain"]["tokens"]
    length = len_of(tokenizer, texts[0])
    assert {len_of(tokenizer, each) for each in texts} == {length}
    assert tokens["sampled"]
    assert (tokens["min"], tokens["max"], tokens["total"]) == (length, length, 50 * length)
    assert tokens["sequences"] == 50 * -(-(length - 1) // 511)


async def test_tokens_are_counted_at_the_upload_as_a_job_would(
    client: httpx.AsyncClient, engine: Engine, tokenizer: Path
) -> None:
    records = [record("Ada"), record("Eve"), {"text": MARKER}]
    uploaded = await upload(client, "forget", *records)
    inline = (await plan(client, forget_set={"records": records}))["statistics"]["forget"]["tokens"]
    with engine.begin() as connection:
        stored = connection.scalar(text("SELECT token_counts FROM datasets"))
        assert list(stored.values()) == [inline]
        # From here on what was stored can be told from what is counted.
        connection.execute(text("UPDATE datasets SET token_counts = replace(token_counts::text, :old, :new)::jsonb"),
                           {"old": f'"total": {inline["total"]}', "new": '"total": 4711'})  # fmt: skip

    async def total(**body: Any) -> int:
        tokens = (await plan(client, forget_set=uploaded, **body))["statistics"]["forget"]["tokens"]
        return int(tokens["total"])

    assert await total() == 4711
    assert await total(method={"max_length": 64}) == inline["total"]
    # Another tokenizer lies there by now: one that ends no text.
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    assert await total() == inline["total"] - len(records)


async def test_tokens_of_a_set_that_was_there_before_its_base_model_are_counted(
    client: httpx.AsyncClient, model_directory: Path
) -> None:
    uploaded = await upload(client, "forget", record("Ada"))
    assert (await plan(client, forget_set=uploaded))["statistics"]["forget"]["tokens"] is None
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, model_directory)
    tokens = (await plan(client, forget_set=uploaded))["statistics"]["forget"]["tokens"]
    assert tokens["total"] == len_of(model_directory, "".join(record("Ada").values()))


@pytest.mark.parametrize("count", [1, 40, 5000])
def test_lines_from_any_place_are_whole_and_reach_the_end(count: int) -> None:
    storage, ring = MemoryStorage(), KeyRing({"k": b"k" * 32})
    lines = [json.dumps({"text": f"{number} " + "x" * (number % 97)}).encode() for number in range(count)]
    with Intake(storage, ring, "ten", b"salt", Limits(4096, 10_000)) as intake:
        intake.feed(b"\n".join(lines))
        stored = intake.finish()
    dataset = Dataset(
        id=stored.dataset_id, tenant_id="ten", blob_key=stored.blob_key, digests_key=stored.digests_key,
        key_id=stored.wrapped.key_id, wrapped_key=stored.wrapped.ciphertext,
    )  # fmt: skip
    vault = Vault(storage, ring)
    starts = []
    for place in (0, 0.2, 0.5, 0.9, 0.999):
        found = list(vault.lines_from(dataset, place))
        assert found == lines[len(lines) - len(found) :]
        starts.append(len(lines) - len(found))
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert count < 5000 or len(set(starts)) > 3


async def test_what_stands_in_the_way_is_told(client: httpx.AsyncClient, engine: Engine, tokenizer: Path) -> None:
    twice = {"records": [record("Ada"), {"id": "9", **record("Ada")}]}
    chat = {"records": [{"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}]}
    asked = (datetime.now(UTC) - timedelta(days=27)).isoformat()
    found = await plan(client, forget_set=twice, retain_set=chat, requested_at=asked)
    assert [warning["code"] for warning in found["warnings"]] == [
        "prompts_not_checked", "few_retain_records", "membership_not_judged", "duplicates", "records_unusable",
        "no_gpu_worker", "due_soon",
    ]  # fmt: skip
    await post_job(client)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO worker_heartbeats (name, queue) VALUES ('a', 'gpu')"))
    many = {"records": [record(f"Bob {number}") for number in range(40)]}
    later = {"records": [record(f"Cy {number}") for number in range(8)]}
    forget = {"records": [record(f"Eve {number}") for number in range(8)]}
    found = await plan(client, forget_set=forget, retain_set=many, holdout_set=later)
    assert [warning["code"] for warning in found["warnings"]] == ["prompts_not_checked", "adapter_busy"]
    overdue = await plan(client, requested_at=(datetime.now(UTC) - DUE_SOON * 6).isoformat())
    assert "overdue" in overdue["warnings"][-1]["message"]


async def test_a_full_queue_does_not_keep_anybody_from_planning(app: FastAPI, client: httpx.AsyncClient) -> None:
    app.state.job_quota = JobQuota(0)
    assert (await dry_run(client)).status_code == 200
    assert (await post_job(client)).status_code == 429


async def test_tokens_that_cannot_be_counted_are_no_reason_to_refuse(client: httpx.AsyncClient) -> None:
    found = await plan(client)
    assert found["statistics"]["forget"]["tokens"] is None
    assert [warning["code"] for warning in found["warnings"]].count("tokens_not_counted") == 2
    assert (await post_job(client)).status_code == 202


async def test_a_forget_set_of_too_many_tokens_is_refused(
    app: FastAPI, client: httpx.AsyncClient, tokenizer: Path
) -> None:
    app.state.settings = app.state.settings.model_copy(update={"max_forget_tokens": 10})
    response = await post_job(client, forget_set={"records": [{"text": "Ada " * 20}]})
    assert response.status_code == 422
    (error,) = response.json()["errors"]
    assert (error["pointer"], "tokens, more than 10" in error["detail"]) == ("/forget_set", True)


async def test_time_is_estimated_from_earlier_runs_where_there_are_any(
    client: httpx.AsyncClient, engine: Engine
) -> None:
    assert (await plan(client))["estimate"]["basis"] == "rule"
    job = (await post_job(client)).json()
    documented = [documents.evaluation(), documents.old_evaluation(), {}]
    with Session(engine) as session, session.begin():
        for number, document in enumerate(documented):
            session.add(
                EvaluationRow(
                    id=f"ev{number}", tenant_id="ten_ours", run_id=job["run_id"], attempt=number, document=document
                )
            )
    found = (await plan(client))["estimate"]
    assert (found["basis"], "earlier run" in found["explanation"]) == ("measured", True)


def model(parameters: int) -> BaseModelRow:
    """A base model of 24 layers that are 2048 wide."""
    shapes = {f"model.layers.{layer}.{name}.weight": [2048, 2048] for layer in range(24) for name in "qkvo"}
    return BaseModelRow(parameters=parameters, shapes=shapes)


def counted(sequences: int = 100, length: int = 100) -> JobStatistics:
    """Sets of equally long records."""
    tokens = {
        "counted": sequences, "sampled": False, "min": length, "median": length, "max": length,
        "total": sequences * length, "max_length": 512, "longer": 0, "sequences": sequences, "unusable": 0,
    }  # fmt: skip
    part = {"dataset": None, "records": sequences, "duplicates": 0, "bytes": 1, "tokens": tokens}
    return JobStatistics.model_validate({"forget": part, "retain": part, "holdout": None})


def test_an_earlier_run_speaks_for_another_number_of_steps_and_batch(settings: Settings) -> None:
    run = EarlierRun(unlearning=100.0, evaluating=40.0, steps=100, sequences=10)
    method = BlurRequest(steps=50, forget_batch_size=10, retain_batch_size=10, schedule=Stretch()).resolve(1)
    found = estimate(method, 2, model(10**9), counted(), [run, EarlierRun(1.0, 1.0, 0, 10)], settings)
    # 0.1 s per sequence, 20 sequences a step; the first probe after 20 steps may end it.
    assert (found.steps.low, found.steps.high) == (20, 50)
    assert found.seconds.low == (20 * 20 * 0.1 + 40) * 0.75
    assert found.seconds.high == (50 * 20 * 0.1 + 40) * 2 * 1.5


@pytest.mark.parametrize(("records", "least"), [(10, 7), (30, 9), (1000, 50)])
def test_a_training_in_cycles_ends_after_a_rehearsal_and_all_records_at_the_earliest(
    settings: Settings, records: int, least: int
) -> None:
    schedule = Cycles(forget_steps=2, rehearsal_steps=5)
    method = BlurRequest(steps=50, forget_batch_size=8, schedule=schedule).resolve(1)
    found = estimate(method, 1, model(10**9), counted(records), [], settings)
    assert (found.steps.low, found.steps.high) == (least, 50)


@pytest.mark.parametrize(
    ("grow", "by"),
    [
        (lambda given: {**given, "base": model(7 * 10**9)}, 7),
        (lambda given: {**given, "statistics": counted(length=500)}, 5),
        (lambda given: {**given, "attempts": 3}, 3),
    ],
)
def test_the_rule_follows_parameters_tokens_and_attempts(
    settings: Settings, grow: Callable[[dict[str, Any]], dict[str, Any]], by: int
) -> None:
    given: dict[str, Any] = {
        "method": BlurRequest(steps=1000, schedule=Stretch()).resolve(1), "attempts": 1, "base": model(10**9),
        "statistics": counted(), "earlier": [], "settings": settings,
    }  # fmt: skip
    small, large = estimate(**given), estimate(**grow(given))
    assert large.seconds.high - 120 == pytest.approx(by * (small.seconds.high - 120), rel=0.2)
    # 6 * 10^9 parameters * 16 sequences * 100 tokens a step, at 10 TFLOP/s, and three times that for the evaluation.
    assert small.seconds.high == pytest.approx(1000 * 6e9 * 1600 / 10e12 * 4 + 120, rel=0.05)


def test_memory_follows_weights_batches_and_checkpointing(settings: Settings) -> None:
    def peak(**knobs: Any) -> tuple[float, float]:
        method = BlurRequest(steps=10, **knobs).resolve(1)
        found = estimate(method, 1, model(10**9), counted(length=512), [], settings).peak_memory_bytes
        return found.low, found.high

    low, high = peak()
    assert 2e9 < low < high
    assert peak(gradient_checkpointing=True)[1] < high
    assert peak(micro_batch_size=1)[1] < high
    assert peak(forget_batch_size=64)[1] > high
    four_bit = settings.model_copy(update={"four_bit": True})
    method = cast(Any, BlurRequest(steps=10).resolve(1))
    assert estimate(method, 1, model(10**9), counted(), [], four_bit).peak_memory_bytes.low < 2e9
