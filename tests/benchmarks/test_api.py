"""The measuring of the API: what it counts, and that a refusal is never timed."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from benchmarks import api
from benchmarks.api_lists import queries
from benchmarks.api_load import documents, request_bytes, send_all
from benchmarks.api_requests import Turns, check, records


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server that gives these answers on one connection, one per request without a body; port and requests."""
    requests: list[bytes] = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            for answer in answers:
                requests.append(connection.recv(65536))
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1], requests
        thread.join()


def answer(status: str, body: bytes) -> bytes:
    """An answer as uvicorn writes it."""
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def test_answers_are_counted_by_their_status_and_kept() -> None:
    answers = (answer("200 OK", b'{"id": 1}'), answer("404 Not Found", b'{"id": 2}'), answer("200 OK", b'{"id": 3}'))
    with answering(*answers) as (port, requests):
        load = send_all(port, [request_bytes("GET", "/a", "lethe_x")] * 3, 1, keep=True)
    assert dict(load.statuses) == {200: 2, 404: 1}
    assert documents(load) == [{"id": 1}, {"id": 2}, {"id": 3}]
    assert len(load.latencies) == 3
    assert load.per_second > 0
    assert all(b"Authorization: Bearer lethe_x\r\n" in request for request in requests)


def test_a_refusal_is_not_timed() -> None:
    with answering(answer("429 Too Many Requests", b"{}")) as (port, _):
        load = send_all(port, [request_bytes("GET", "/a")], 1, keep=True)
    with pytest.raises(SystemExit, match="429"):
        check("lethe", load, 200)


def test_a_ratio_is_taken_within_a_turn() -> None:
    turns = Turns(per_second={"bare": [100.0, 1000.0, 10.0], "lethe": [50.0, 500.0, 5.0]})
    turns.cpu_ms = turns.latency_ms = turns.per_second
    row = turns.row()
    assert row["ratio"] == 0.5
    assert row["ratio_quartiles"] == [0.5, 0.5]
    assert row["per_second"] == {"bare": 100.0, "lethe": 50.0}


def test_every_bar_is_judged_by_its_own_direction() -> None:
    met = {"post_ratio": 0.4, "poll_ratio": 0.7, "upload_extra_mb": 80.0, "list_latency_ratio": 1.0}
    assert all(told.endswith(": met") for told in api.verdicts(met).values())
    missed = {"post_ratio": 0.3, "poll_ratio": 0.5, "upload_extra_mb": 81.0, "list_latency_ratio": 1.6}
    assert all(told.endswith(": missed") for told in api.verdicts(missed).values())


def test_the_command_names_every_size_and_no_folder() -> None:
    options = api.parse(["--quick", "--json", "/somewhere/result.json"])
    assert api.command(options) == (
        "python -m benchmarks.api --rounds 4 --requests 50 --upload-mib 128 --jobs 100000 --seed 0"
    )


def test_no_two_uploads_are_alike() -> None:
    assert records() != records()
    assert records().count(b"\n") == 20


def test_every_filter_is_asked() -> None:
    asked = " ".join(queries(1000, "support-bot").values())
    for name in ("status=", "adapter=", "subject_request_id=", "metadata[", "due_before="):
        assert name in asked
