"""A client that costs little: keep-alive connections over plain sockets, requests made of bytes beforehand.

A full HTTP client in Python takes longer for a request than the server does. This one reads what the servers here
send, an answer with a Content-Length, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

END_OF_HEAD = b"\r\n\r\n"


@dataclass
class Load:
    """What came of a number of requests."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.statuses.total() / self.seconds


def request_bytes(
    method: str, path: str, key: str | None = None, body: object = None, headers: dict[str, str] | None = None
) -> bytes:
    """One request as it goes over the wire. Bytes are sent as JSON Lines, any other body as JSON."""
    content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    kind = "application/jsonl" if isinstance(body, bytes) else "application/json"
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Accept: */*"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"Content-Type: {kind}", f"Content-Length: {len(content)}"] if body is not None else []
    return "\r\n".join(lines).encode() + END_OF_HEAD + content


def send_all(port: int, requests: Sequence[bytes], connections: int, *, keep: bool = False) -> Load:
    """Send the requests over so many connections, each of which sends its next one when it has its answer.

    Args:
        keep: also keep the bodies of the answers, in the order in which they came.
    """
    return asyncio.run(_send_all(port, requests, connections, keep=keep))


async def _send_all(port: int, requests: Sequence[bytes], connections: int, *, keep: bool) -> Load:
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(connections)]
    load, waiting = Load(), iter(requests)
    start = time.perf_counter()
    await asyncio.gather(*(_work(reader, writer, waiting, load, keep=keep) for reader, writer in streams))
    load.seconds = time.perf_counter() - start
    for _, writer in streams:
        writer.close()
        await writer.wait_closed()
    return load


async def _work(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, waiting: Iterator[bytes], load: Load, *, keep: bool
) -> None:
    for request in waiting:
        start = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(END_OF_HEAD)
        body = await reader.readexactly(_length(head))
        load.latencies.append(time.perf_counter() - start)
        load.statuses[int(head[9:12])] += 1
        if keep:
            load.bodies.append(body)


def _length(head: bytes) -> int:
    lowered = head.lower()
    _, found, rest = lowered.partition(b"\r\ncontent-length:")
    if not found:
        raise ValueError("an answer without a Content-Length")
    return int(rest.split(b"\r\n", 1)[0])


def documents(load: Load) -> list[Any]:
    """The bodies that were kept, as JSON."""
    return [json.loads(body) for body in load.bodies]


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower and the upper quartile."""
    lower, _, upper = quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return [lower, upper]
