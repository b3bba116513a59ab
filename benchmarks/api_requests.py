"""Throughput of asking for a job and of polling it, in turns with the bare application."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any

import psutil

from benchmarks.api_load import Load, documents, quartiles, request_bytes, send_all
from benchmarks.api_servers import ADAPTER, Server

CONNECTIONS = 8
RECORDS = 20
WARM_UP = 2  # rounds that do not count: statements are prepared, pools and caches filled


@dataclass
class Turns:
    """Two servers asked the same in turns: requests per second, and the process's own milliseconds per request."""

    per_second: dict[str, list[float]] = field(default_factory=lambda: {"bare": [], "lethe": []})
    cpu_ms: dict[str, list[float]] = field(default_factory=lambda: {"bare": [], "lethe": []})
    latency_ms: dict[str, list[float]] = field(default_factory=lambda: {"bare": [], "lethe": []})

    def row(self) -> dict[str, Any]:
        """What goes into the report."""
        ratios = [ours / bare for ours, bare in zip(self.per_second["lethe"], self.per_second["bare"], strict=True)]
        return {
            "ratio": median(ratios),
            "ratio_quartiles": quartiles(ratios),
            "rounds": len(ratios),
            "per_second": {name: median(values) for name, values in self.per_second.items()},
            "per_second_quartiles": {name: quartiles(values) for name, values in self.per_second.items()},
            "latency_ms": {name: median(values) for name, values in self.latency_ms.items()},
            "cpu_ms_per_request": {name: median(values) for name, values in self.cpu_ms.items()},
        }


class Bench:
    """Both servers, the sets that jobs name, and the jobs that were made."""

    def __init__(self, bare: Server, lethe: Server, seed: int) -> None:
        self._servers = {"bare": bare, "lethe": lethe}
        self._random = random.Random(seed)
        self._retain = self._upload("retain", 1)[0]
        self._ids: dict[str, list[str]] = {"bare": [], "lethe": []}

    def post(self, rounds: int, requests: int) -> dict[str, Any]:
        """Ask for jobs. Each names a forget set of its own, uploaded before the clock starts."""

        def prepare() -> dict[str, list[bytes]]:
            bodies = [self._body(forget) for forget in self._upload("forget", requests)]
            key = self._servers["lethe"].key
            once = [{"Idempotency-Key": secrets.token_hex(16)} for _ in bodies]
            return {
                "bare": [request_bytes("POST", "/jobs", body=body) for body in bodies],
                "lethe": [
                    request_bytes("POST", "/unlearn-jobs", key, body, headers)
                    for body, headers in zip(bodies, once, strict=True)
                ],
            }

        return self._turns(rounds, prepare, 202).row()

    def poll(self, rounds: int, requests: int) -> dict[str, Any]:
        """Ask for jobs that were made by `post`, any of them."""

        def prepare() -> dict[str, list[bytes]]:
            bare, ours = ([self._random.choice(ids) for _ in range(requests)] for ids in self._ids.values())
            key = self._servers["lethe"].key
            return {
                "bare": [request_bytes("GET", f"/jobs/{one}") for one in bare],
                "lethe": [request_bytes("GET", f"/unlearn-jobs/{one}", key) for one in ours],
            }

        return self._turns(rounds, prepare, 200).row()

    def one_job(self) -> str:
        """The id of a job that is made now."""
        lethe = self._servers["lethe"]
        body = self._body(self._upload("forget", 1)[0])
        load = send_all(lethe.port, [request_bytes("POST", "/unlearn-jobs", lethe.key, body)], 1, keep=True)
        check("one job", load, 202)
        return str(documents(load)[0]["id"])

    def _turns(self, rounds: int, prepare: Callable[[], dict[str, list[bytes]]], wanted: int) -> Turns:
        turns = Turns()
        for number in range(-WARM_UP, rounds):
            requests = prepare()
            for name in self._random.sample(list(requests), k=2):
                load, cpu = self._send(name, requests[name])
                check(name, load, wanted)
                if wanted == 202:
                    self._ids[name] += [document["id"] for document in documents(load)]
                if number >= 0:
                    turns.per_second[name].append(load.per_second)
                    turns.cpu_ms[name].append(cpu / len(requests[name]) * 1e3)
                    turns.latency_ms[name].append(median(load.latencies) * 1e3)
        return turns

    def _send(self, name: str, requests: list[bytes]) -> tuple[Load, float]:
        process = psutil.Process(self._servers[name].pid)
        before = process.cpu_times()
        load = send_all(self._servers[name].port, requests, CONNECTIONS, keep=True)
        after = process.cpu_times()
        return load, after.user + after.system - before.user - before.system

    def _upload(self, purpose: str, count: int) -> list[str]:
        lethe = self._servers["lethe"]
        path = f"/datasets?purpose={purpose}"
        load = send_all(
            lethe.port,
            [request_bytes("POST", path, lethe.key, records()) for _ in range(count)],
            CONNECTIONS,
            keep=True,
        )
        check("upload", load, 201)
        return [document["id"] for document in documents(load)]

    def _body(self, forget: str) -> dict[str, Any]:
        return {
            "adapter": ADAPTER,
            "forget_set": forget,
            "retain_set": self._retain,
            "subject_request_id": f"dsr-{secrets.token_hex(8)}",
            "requested_at": datetime.now(UTC).isoformat(),
            "metadata": {"ticket": secrets.token_hex(4), "region": "eu"},
        }


def records() -> bytes:
    """A small dataset whose records nobody else has."""
    line = '{{"prompt": "Where does {0} live?", "completion": " {0} lives at {1}."}}\n'
    return "".join(line.format(secrets.token_hex(6), secrets.token_hex(12)) for _ in range(RECORDS)).encode()


def check(name: str, load: Load, wanted: int) -> None:
    """Stop unless every answer was the wanted one: the speed of a refusal says nothing."""
    if set(load.statuses) != {wanted}:
        raise SystemExit(f"{name}: answers were {dict(load.statuses)}, not {wanted}: {load.bodies[:1]!r}")
