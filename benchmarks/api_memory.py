"""Memory of the API process while a dataset streams in."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.api_load import END_OF_HEAD, request_bytes, send_all
from benchmarks.api_requests import check, records
from benchmarks.api_servers import HOST, Server

RECORD_BYTES = 2048
BLOCK_RECORDS = 64
SAMPLE_SECONDS = 0.1


def measure_upload(lethe: Server, size: int) -> dict[str, Any]:
    """Upload `size` bytes of records of 2 KiB, each another one, and watch the process meanwhile.

    The peak of the resident set is the kernel's own mark, so nothing is missed between two samples; the other
    figures are sampled.
    """
    path = "/datasets?purpose=retain"
    warm_up = send_all(lethe.port, [request_bytes("POST", path, lethe.key, records()) for _ in range(20)], 4)
    check("upload", warm_up, 201)
    process = psutil.Process(lethe.pid)
    idle = process.memory_full_info()
    Path(f"/proc/{lethe.pid}/clear_refs").write_text("5")  # the mark starts anew
    with _Watch(process) as watch:
        start = time.perf_counter()
        answer = _upload(lethe, path, size)
        seconds = time.perf_counter() - start
    if not answer.startswith(b"HTTP/1.1 201"):
        raise SystemExit(f"the upload was refused: {answer[:300]!r}")
    peak = _high_water_mark(lethe.pid)
    return {
        "extra_mb": (peak - idle.rss) / 1e6,
        "idle_rss_mb": idle.rss / 1e6,
        "peak_rss_mb": peak / 1e6,
        "extra_pss_mb": (watch.pss - idle.pss) / 1e6,
        "extra_uss_mb": (watch.uss - idle.uss) / 1e6,
        "samples": watch.samples,
        "bytes": size,
        "seconds": seconds,
        "mb_per_second": size / 1e6 / seconds,
    }


class _Watch:
    """Samples a process in a thread: the highest proportional and unique set, in bytes."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.pss = self.uss = self.samples = 0

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(SAMPLE_SECONDS):
            now = self._process.memory_full_info()
            self.pss, self.uss, self.samples = max(self.pss, now.pss), max(self.uss, now.uss), self.samples + 1


def _high_water_mark(pid: int) -> int:
    """The largest resident set since it was last reset, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def _upload(lethe: Server, path: str, size: int) -> bytes:
    blocks = size // (RECORD_BYTES * BLOCK_RECORDS)
    head = request_bytes("POST", path, lethe.key, b"").removesuffix(END_OF_HEAD)
    length = f"Content-Length: {blocks * RECORD_BYTES * BLOCK_RECORDS}".encode()
    with socket.create_connection((HOST, lethe.port), timeout=600) as connection:
        connection.sendall(head.replace(b"Content-Length: 0", length) + END_OF_HEAD)
        for block in _blocks(blocks):
            connection.sendall(block)
        return connection.recv(65536)


def _blocks(count: int) -> Iterator[bytes]:
    """Records that differ at their beginning; random text throughout would measure this process."""
    filling = "Quell is a small town by a river, and nothing in it is true. " * (RECORD_BYTES // 40)
    for block in range(count):
        lines = []
        for number in range(BLOCK_RECORDS):
            head = f'{{"prompt": "Who is {secrets.token_hex(8)}-{block}-{number}?", "completion": "'
            lines.append(f'{head}{filling[: RECORD_BYTES - len(head) - 3]}"}}\n')
        yield "".join(lines).encode()
