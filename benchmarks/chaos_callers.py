"""Callers that keep jobs flowing through a service that fails, and know what they were promised."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg

from app.demo.files import BASE_MODEL, DemoFiles
from benchmarks.chaos_service import Service

IN_FLIGHT = 4
JOBS_PER_ADAPTER = 3
FORGET, RETAIN = 4, 8
STEPS = 60
# Cheap, and the same for all, so that every adapter has the same bytes after as many jobs.
METHOD = {
    "type": "blur",
    "forget_loss": {"type": "npo"},
    "steps": STEPS,
    "forget_batch_size": 4,
    "retain_batch_size": 4,
    "max_length": 64,
    "stop": {"type": "steps"},
    "schedule": {"type": "stretch"},
}
# What no caller may ask for: any result passes, so that every job makes a version.
OPEN = {
    "max_forget_probability": 1,
    "max_forget_extraction_strength": 1,
    "max_forget_rouge_l_recall": 1,
    "min_retain_probability_ratio": 0,
    "min_retain_rouge_l_recall_ratio": 0,
    "probes": ["recall", "utility"],
    "max_forget_nll_excess": None,
    "min_neighbour_probability_ratio": None,
    "max_general_nll_increase": None,
}
FINAL = ("succeeded", "gate_failed", "failed", "cancelled")
_PAUSE = 0.5
_TIMEOUT = 20.0


@dataclass
class Wanted:
    """A deletion request, from its sender's side.

    Attributes:
        job_id: what the service promised; None while it has not answered.
        released: its gate was opened, and it was approved.
    """

    number: int
    adapter: str
    job_id: str | None = None
    released: bool = False


class Callers(threading.Thread):
    """Sends requests and repeats each until it is answered, so that a few jobs are always in flight."""

    def __init__(self, service: Service, files: DemoFiles) -> None:
        super().__init__(daemon=True)
        self.wanted: list[Wanted] = []
        self.broken_promises: list[str] = []
        self._service, self._files = service, files
        self._sending = threading.Event()
        self._over = threading.Event()
        self._adapters: set[str] = set()
        self._retain: str | None = None
        lines = {name: files.records(name).read_text().splitlines() for name in ("forget", "retain")}
        self._forget_records = [json.loads(line) for line in lines["forget"][:FORGET]]
        self._retain_lines = "\n".join(lines["retain"][:RETAIN]) + "\n"

    def send(self, *, more: bool) -> None:
        """Go on, or wait."""
        (self._sending.set if more else self._sending.clear)()

    def end(self) -> None:
        """Send nothing more."""
        self._over.set()
        self.join()

    def run(self) -> None:
        """Keep jobs in flight."""
        while not self._over.is_set():
            if self._sending.is_set() and self._in_flight() < IN_FLIGHT:
                self.ask()
            elif waiting := [each for each in self.wanted if each.job_id and not each.released]:
                self._release(waiting[0])
            else:
                time.sleep(_PAUSE)

    def ask(self) -> Wanted:
        """Send one request, to its answer."""
        number = len(self.wanted)
        wanted = Wanted(number, f"bot-{number // JOBS_PER_ADAPTER}")
        self._register(wanted.adapter)
        self.wanted.append(wanted)
        body = {
            "adapter": wanted.adapter,
            "forget_set": {"records": self._forget_records},
            "retain_set": self._retain,
            "method": METHOD,
            "seed": 7,
            "subject_request_id": f"request-{number}",
            "policy": {"requires_approval": True},
        }
        headers = {"Idempotency-Key": f'"{number}"'}
        answer = self._until_answered("POST", "/unlearn-jobs", (202,), json=body, headers=headers)
        wanted.job_id = answer.json()["id"]
        self._release(wanted)
        return wanted

    def _release(self, wanted: Wanted) -> None:
        """Open the job's gate behind the service's back while it waits for approval, then approve it."""
        assert wanted.job_id is not None  # noqa: S101
        change = "UPDATE unlearn_jobs SET policy = policy || %s::jsonb WHERE id = %s AND status = 'awaiting_approval'"
        self._until_it_works(lambda connection: connection.execute(change, [json.dumps(OPEN), wanted.job_id]))
        # 409: an earlier try was heard, and its answer lost.
        self._until_answered("POST", f"/unlearn-jobs/{wanted.job_id}/approve", (202, 409), key=1, json={})
        wanted.released = True

    def _register(self, adapter: str) -> None:
        if self._retain is None:
            body = {"name": BASE_MODEL, "source": self._files.base.name}
            self._until_answered("POST", "/base-models", (201, 409), json=body)
            kind = {"Content-Type": "application/jsonl"}
            answer = self._until_answered(
                "POST", "/datasets?purpose=retain", (201,), content=self._retain_lines, headers=kind
            )
            self._retain = answer.json()["id"]
        if adapter in self._adapters:
            return
        parts = {"adapter_config": "adapter_config.json", "adapter_model": "adapter_model.safetensors"}
        files = {field: (name, (self._files.adapter / name).read_bytes()) for field, name in parts.items()}
        data = {"name": adapter, "base_model": BASE_MODEL}
        self._until_answered("POST", "/adapters", (201, 409), data=data, files=files)
        self._adapters.add(adapter)

    def _in_flight(self) -> int:
        known = [each.job_id for each in self.wanted if each.job_id]
        question = "SELECT count(*) FROM unlearn_jobs WHERE id = ANY(%s) AND NOT status = ANY(%s)"
        row = self._until_it_works(lambda connection: connection.execute(question, [known, list(FINAL)]).fetchone())
        return int(row[0])

    def _until_answered(
        self,
        method: str,
        path: str,
        statuses: tuple[int, ...],
        *,
        key: int = 0,
        **request: Any,  # noqa: ANN401
    ) -> httpx.Response:
        """Repeat a request until it gets an answer that settles it."""
        headers = {**request.pop("headers", {}), "Authorization": f"Bearer {self._service.keys[key]}"}
        while True:
            try:
                answer = httpx.request(
                    method, self._service.url + path, headers=headers, timeout=_TIMEOUT, trust_env=False, **request
                )
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code in statuses:
                return answer
            if answer is not None and answer.status_code < 500 and answer.status_code not in (409, 429):
                self.broken_promises.append(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
            if answer is not None and answer.status_code == 500:
                self.broken_promises.append(f"{method} {path}: 500")
            time.sleep(_PAUSE)

    def _until_it_works(self, work: Callable[[psycopg.Connection[Any]], Any]) -> Any:  # noqa: ANN401
        while True:
            try:
                with self._service.connect() as connection:
                    return work(connection)
            except psycopg.Error:
                time.sleep(_PAUSE)
