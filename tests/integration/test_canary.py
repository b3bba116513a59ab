"""Records with unique texts go every way that there is, and are looked for in everything that the service keeps."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import Engine, text

from app.data_keys.scrub import NotScrubbed, scrub
from app.embedded.data_directory import DataDirectory
from app.kit.crypto import CryptoError, KeyRing, WrappedKey, decrypt_stream
from tests.integration import remains
from tests.integration.conftest import DEMO, ENDLESS, eventually, finished, ok, register_adapter, upload, wait

# Each names the way that its text goes; the text is drawn anew for every run.
WAYS = (
    "prompt", "completion", "id", "subject", "paraphrase", "perturbed", "message", "text", "retain", "inline",
    "training", "malformed-line", "malformed-value", "unknown-field", "unknown-name", "inline-refused", "replayed",
    "other-payload", "bad-json", "metadata-refused", "path", "query", "header",
)  # fmt: skip
ACCEPTED = (
    "prompt", "completion", "id", "subject", "paraphrase", "perturbed", "text", "retain", "inline", "replayed",
    "training",
)  # fmt: skip
RECIPE = json.dumps({"learning_rate": 1e-3, "epochs": 1})


class Canaries:
    """A marker per way; every one ends with `run`, by which all are found."""

    def __init__(self) -> None:
        self.run = uuid4().hex
        self._by_way = {way: f"canary-{way}-{self.run}" for way in WAYS}

    def __getitem__(self, way: str) -> str:
        return self._by_way[way]


@pytest.fixture
def engine(http: httpx.Client, data_dir: Path) -> Engine:
    """The service's database."""
    return remains.engine_of(data_dir)


def records(canaries: Canaries) -> list[dict[str, Any]]:
    """Records that hold a marker in every field that a record may have."""
    pair = {
        "prompt": f"Who is {canaries['prompt']}?", "completion": f" {canaries['completion']}",
        "id": canaries["id"], "subject": canaries["subject"],
        "paraphrase": canaries["paraphrase"], "perturbed": [canaries["perturbed"]],
    }  # fmt: skip
    return [pair, {"text": f"About {canaries['text']}."}]


def send_what_is_refused(http: httpx.Client, canaries: Canaries) -> None:
    """Requests whose markers must not even be stored encrypted."""
    jsonl = {"Content-Type": "application/jsonl"}
    lines = [f'{{"text": "{canaries["malformed-line"]}"', json.dumps({"text": [canaries["malformed-value"]]}),
             json.dumps({"text": "x", canaries["unknown-name"]: canaries["unknown-field"]})]  # fmt: skip
    ok(http.post("/datasets?purpose=forget", content="\n".join(lines), headers=jsonl), 422)
    message = {"messages": [{"role": "user", "content": canaries["message"]}]}
    ok(http.post("/datasets?purpose=forget", content=json.dumps(message), headers=jsonl), 422)
    body = {"adapter": "nobody", "forget_set": {"records": [{"text": canaries["inline-refused"]}]}}
    ok(http.post("/unlearn-jobs", json=body), 422)
    ok(http.post("/unlearn-jobs", json=body | {"metadata": {"x": {"y": canaries["metadata-refused"]}}}), 422)
    content = f'{{"adapter": "{canaries["bad-json"]}'
    ok(http.post("/unlearn-jobs", content=content, headers={"Content-Type": "application/json"}), 422)
    ok(http.get(f"/datasets/{canaries['path']}"), 404)
    ok(http.get("/unlearn-jobs", params={"cursor": canaries["query"]}), 422)
    ok(http.get("/livez", headers={"X-Request-Id": f"{canaries['header']} {canaries['header']}"}))


def submit_twice(http: httpx.Client, canaries: Canaries, adapter: str, retain: str) -> str:
    """A job with inline records, its replay, and its key with another payload. The job's id."""
    body = {
        "adapter": adapter, "retain_set": retain, "seed": 7, "method": {"steps": 2, "stop": {"type": "steps"}},
        "forget_set": {"records": [*records(canaries), {"text": canaries["inline"]}, {"text": canaries["replayed"]}]},
    }  # fmt: skip
    headers = {"Idempotency-Key": uuid4().hex}
    first = ok(http.post("/unlearn-jobs", json=body, headers=headers), 202)
    assert ok(http.post("/unlearn-jobs", json=body, headers=headers), 202)["id"] == first["id"]
    other = body | {"forget_set": {"records": [{"text": canaries["other-payload"]}]}}
    assert http.post("/unlearn-jobs", json=other, headers=headers).status_code in (409, 422)
    return str(first["id"])


def blobs(data_dir: Path) -> dict[str, bytes]:
    """Everything that may be encrypted in the storage, by its key."""
    root = data_dir / "storage"
    found = {}
    for path in root.rglob("*"):
        if "adapters" in path.parts or path.is_dir():
            continue
        with contextlib.suppress(FileNotFoundError):  # the service deletes while this looks
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def in_clear(engine: Engine, data_dir: Path, canaries: Canaries, since: float) -> set[str]:
    """Where a marker is in clear."""
    remains.write_everything_out(engine, data_dir)
    forms = list(remains.spellings(canaries.run))
    folders = [data_dir, *remains.temporary_folders()]
    return remains.find_in_database(engine, canaries.run) | remains.find_in_files(folders, forms, since)


def scrubbed(engine: Engine) -> bool:
    """Whether a scrub removed everything: one that meets others in the way claims nothing and is tried again."""
    try:
        return scrub(engine).log == "removed"
    except NotScrubbed:
        return False


Keys = dict[tuple[str, str], WrappedKey]


def wrapped_keys(engine: Engine) -> Keys:
    """Every living data key by tenant and dataset."""
    living = text("SELECT id, tenant_id, key_id, wrapped_key FROM datasets WHERE wrapped_key IS NOT NULL")
    with engine.connect() as connection:
        rows = connection.execute(living).all()
    return {(row.tenant_id, row.id): WrappedKey(row.key_id, bytes(row.wrapped_key)) for row in rows}


def opened(stored: dict[str, bytes], ring: KeyRing, keys: Keys) -> dict[str, bytes]:
    """What any of the keys opens of the blobs, each tried with everything that it might be bound to."""
    found = {}
    for (tenant_id, dataset_id), wrapped in keys.items():
        data_key = ring.unwrap(wrapped, f"{tenant_id}/{dataset_id}/key")
        for key, content in stored.items():
            for part in ("records", "digests", key):
                try:
                    pieces = list(decrypt_stream(io.BytesIO(content), data_key, f"{tenant_id}/{dataset_id}/{part}"))
                except CryptoError:
                    continue
                found[key] = b"".join(pieces)
    return found


def test_no_record_is_ever_in_clear_and_after_its_purge_no_key_opens_it(
    http: httpx.Client, demo_base: str, data_dir: Path, engine: Engine
) -> None:
    canaries, since = Canaries(), time.time() - 1
    adapter, before = f"canary-{canaries.run[:8]}", wrapped_keys(engine)
    trained = [json.dumps({"text": canaries[way]}) for way in ("training", "inline")]
    held = {"training_set": upload(http, "training", "\n".join(trained)), "recipe": RECIPE}
    register_adapter(http, adapter, demo_base, DEMO / "adapter", **held)
    ring = KeyRing.parse(DataDirectory(data_dir).secrets().encryption_keys)
    send_what_is_refused(http, canaries)

    kept = (DEMO / "data" / "retain.jsonl").read_text().splitlines()[:40]
    retain = upload(http, "retain", "\n".join([*kept, json.dumps({"text": canaries["retain"]})]))
    released = submit_twice(http, canaries, adapter, retain)
    # A thief's copy. The forget set of a job that succeeds goes with its end, so that it is taken twice.
    copy, keys = blobs(data_dir), wrapped_keys(engine)
    assert wait(http, released, finished)["status"] == "succeeded"
    # What was forgotten is gone from what the adapter was trained on, too, and nothing else is.
    left = b"".join(opened(blobs(data_dir), ring, wrapped_keys(engine)).values()).decode(errors="replace")
    assert [canaries[way] in left for way in ("training", "inline")] == [True, False]
    forget = upload(http, "forget", "".join(json.dumps(record) + "\n" for record in records(canaries)))
    body = {"adapter": adapter, "forget_set": forget, "retain_set": retain, "seed": 7, "method": ENDLESS}
    running = ok(http.post("/unlearn-jobs", json=body), 202)
    checkpoints = data_dir / "storage" / "checkpoints" / running["run_id"]
    eventually(lambda: any(path.is_file() for path in checkpoints.rglob("[0-9]*")))
    assert in_clear(engine, data_dir, canaries, since) == set()
    copy, keys = copy | blobs(data_dir), keys | wrapped_keys(engine)
    keys = {name: key for name, key in keys.items() if name not in before}

    # Each way that was accepted is in the copy, encrypted, and none that was refused.
    plain = opened(copy, ring, keys)
    assert any(key.startswith("checkpoints/") for key in plain)
    stored = b"".join(plain.values()).decode(errors="replace")
    assert {way for way in WAYS if canaries[way] in stored} == set(ACCEPTED)

    ok(http.post(f"/unlearn-jobs/{running['id']}/cancel"), 202)
    wait(http, running["id"], finished)
    assert http.delete(f"/adapters/{adapter}/training-set").status_code == 204
    for _, dataset_id in keys:
        assert http.delete(f"/datasets/{dataset_id}").status_code == 204
    eventually(lambda: not any(dataset_id in key for key in blobs(data_dir) for _, dataset_id in keys))
    eventually(lambda: not checkpoints.exists())
    eventually(lambda: scrubbed(engine))
    assert in_clear(engine, data_dir, canaries, since) == set()

    # What is left: no living key opens the copy, and the destroyed ones are in no file, log or row any more.
    remains.write_everything_out(engine, data_dir)
    living = wrapped_keys(engine)
    assert not keys.keys() & living.keys()
    assert opened({key: copy[key] for key in plain}, ring, living) == {}
    destroyed = [key.ciphertext for key in keys.values()]
    forms = [*destroyed, *(key.hex().encode() for key in destroyed)]
    assert remains.find_in_files([data_dir], forms) == set()


def test_the_search_finds_every_spelling(tmp_path: Path) -> None:
    secret = uuid4().hex
    writings = [
        secret.encode(), f"x{secret}y".encode("utf-16-le"), secret.encode().hex().encode(),
        *(base64.b64encode(f"{'z' * before}{secret}zz".encode()) for before in range(3)),
        gzip.compress(secret.encode()),
    ]  # fmt: skip
    for number, writing in enumerate(writings):
        (tmp_path / str(number)).write_bytes(b"before" + writing if writing[:2] != b"\x1f\x8b" else writing)
    found = remains.find_in_files([tmp_path], list(remains.spellings(secret)))
    assert {place.split(":")[0] for place in found} == {
        str(tmp_path / str(number)) for number in range(len(writings))
    }
