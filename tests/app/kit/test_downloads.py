"""Downloads over the storage interface: conditions, ranges, large blobs, callers who go away."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import anyio
import httpx
import pytest
from fastapi import FastAPI, Request, Response

from app.kit import problems
from app.kit.downloads import CHUNK, Blob, download
from app.kit.storage import LocalStorage, Reader, Storage

CONTENT = bytes(range(256)) * 4
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TAG = f'"{SHA256}"'
HUGE = 5 * 1024**3 + 7


@dataclass
class Watched:
    """A reader that tells what was done with it."""

    source: Reader
    read_bytes: int = 0
    closed: bool = False

    def read(self, size: int, /) -> bytes:
        """Pass on, and count."""
        data = self.source.read(size)
        self.read_bytes += len(data)
        return data

    def close(self) -> None:
        """Pass on, and note."""
        self.closed = True
        self.source.close()


@dataclass
class Elsewhere:
    """A storage that has no file to show, as an object store; it holds `content` under "blob"."""

    content: bytes | None = CONTENT
    readers: list[Watched] = field(default_factory=list)

    def size(self, _key: str) -> int:
        """Length of the blob."""
        if self.content is None:
            raise FileNotFoundError
        return len(self.content)

    def open_range(self, _key: str, start: int, length: int) -> Reader:
        """A part of it."""
        assert self.content is not None
        self.readers.append(Watched(io.BytesIO(self.content[start : start + length])))
        return self.readers[-1]


@dataclass
class Huge:
    """A local storage with a sparse blob of more than 5 GB, whose readers are watched."""

    local: LocalStorage
    readers: list[Watched] = field(default_factory=list)

    def size(self, key: str) -> int:
        """Length of a blob."""
        return self.local.size(key)

    def open_range(self, key: str, start: int, length: int) -> Reader:
        """A part of it."""
        self.readers.append(Watched(self.local.open_range(key, start, length)))
        return self.readers[-1]


def serve(storage: Elsewhere | Huge) -> FastAPI:
    """An application that hands out one blob."""
    app = FastAPI()
    problems.install(app)
    blob = Blob("blob", SHA256, "bot-v1.tar.gz", "application/gzip")

    async def get(request: Request) -> Response:
        return await download(request, cast(Storage, storage), blob)

    app.add_api_route("/blob", get, methods=["GET", "HEAD"])
    return app


@pytest.fixture
def elsewhere() -> Elsewhere:
    """The small blob."""
    return Elsewhere()


@pytest.fixture
async def client(elsewhere: Elsewhere) -> AsyncIterator[httpx.AsyncClient]:
    """Asks for the small blob."""
    transport = httpx.ASGITransport(app=serve(elsewhere))
    async with httpx.AsyncClient(transport=transport, base_url="http://lethe.test") as client:
        yield client


@pytest.fixture
def huge(tmp_path: Path) -> Huge:
    """A sparse file: its last bytes are written, the others take no room."""
    (tmp_path / "blob").touch()
    with (tmp_path / "blob").open("r+b") as file:
        file.truncate(HUGE)
        file.seek(HUGE - 4)
        file.write(b"last")
    return Huge(LocalStorage(tmp_path))


async def test_the_whole_says_what_it_is(client: httpx.AsyncClient, elsewhere: Elsewhere) -> None:
    answer = await client.get("/blob")
    assert (answer.status_code, answer.content) == (200, CONTENT)
    digest = base64.b64encode(hashlib.sha256(answer.content).digest()).decode()
    assert dict(answer.headers) == {
        "content-type": "application/gzip",
        "content-length": str(len(CONTENT)),
        "content-disposition": 'attachment; filename="bot-v1.tar.gz"',
        "accept-ranges": "bytes",
        "etag": TAG,
        "repr-digest": f"sha-256=:{digest}:",
        "cache-control": "private, no-cache",
    }
    assert elsewhere.readers[0].closed


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=2-5"}, {"Range": "bytes=99999-"}, {"If-Range": '"x"'}])
async def test_head_is_answered_as_a_get_without_a_range(
    client: httpx.AsyncClient, elsewhere: Elsewhere, headers: dict[str, str]
) -> None:
    head, whole = await client.head("/blob", headers=headers), await client.get("/blob")
    assert (head.status_code, head.content, head.headers) == (200, b"", whole.headers)
    assert len(elsewhere.readers) == 1, "nothing is opened for HEAD"


@pytest.mark.parametrize(
    ("wanted", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=5-9", 5, 9),
        ("Bytes=5-9", 5, 9),
        ("bytes=1000-", 1000, 1023),
        ("bytes=1023-99999", 1023, 1023),
        ("bytes=-3", 1021, 1023),
        ("bytes=-99999", 0, 1023),
        ("bytes=0-1023", 0, 1023),
    ],
)
async def test_a_range_is_answered_with_its_bytes(
    client: httpx.AsyncClient, wanted: str, first: int, last: int
) -> None:
    answer = await client.get("/blob", headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (206, CONTENT[first : last + 1])
    assert answer.headers["content-range"] == f"bytes {first}-{last}/1024"
    assert answer.headers["content-length"] == str(last - first + 1)
    whole = await client.head("/blob")
    for name in ("etag", "repr-digest", "accept-ranges", "content-type", "content-disposition"):
        assert answer.headers[name] == whole.headers[name]


@pytest.mark.parametrize("wanted", ["bytes=abc", "bytes=-", "lines=1-2", "bytes=9-5", "bytes=0-1,5-6", "5-9"])
async def test_what_is_no_single_range_gives_the_whole(client: httpx.AsyncClient, wanted: str) -> None:
    answer = await client.get("/blob", headers={"Range": wanted})
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert "content-range" not in answer.headers


@pytest.mark.parametrize("wanted", ["bytes=1024-", "bytes=99999999-", "bytes=-0", "bytes=1024-2000"])
async def test_a_range_outside_of_the_blob_is_a_problem(client: httpx.AsyncClient, wanted: str) -> None:
    answer = await client.get("/blob", headers={"Range": wanted})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == "bytes */1024"


@pytest.mark.parametrize(
    ("condition", "status"),
    [(TAG, 206), ('"other"', 200), (f"W/{TAG}", 200), ("Wed, 21 Oct 2015 07:28:00 GMT", 200), (SHA256, 200)],
)
async def test_a_range_of_something_else_than_what_is_there_gives_the_whole(
    client: httpx.AsyncClient, condition: str, status: int
) -> None:
    answer = await client.get("/blob", headers={"Range": "bytes=5-9", "If-Range": condition})
    assert answer.status_code == status
    assert answer.content == (CONTENT[5:10] if status == 206 else CONTENT)


@pytest.mark.parametrize(
    "condition", ["*", " * ", TAG, f"W/{TAG}", f'"x", {TAG}', f'"a,b" , W/"c",W/{TAG}', f'"x",{TAG},"y"']
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_caller_who_has_it_gets_nothing(
    client: httpx.AsyncClient, elsewhere: Elsewhere, method: str, condition: str
) -> None:
    headers = {"If-None-Match": condition, "Range": "bytes=0-1"}
    answer = await client.request(method, "/blob", headers=headers)
    assert (answer.status_code, answer.content) == (304, b"")
    assert (answer.headers["etag"], answer.headers["cache-control"]) == (TAG, "private, no-cache")
    assert elsewhere.readers == []


@pytest.mark.parametrize("condition", ['"other"', SHA256, f'"x{SHA256}"', "", f'"a, {SHA256}"'])
async def test_another_entity_tag_is_none_of_ours(client: httpx.AsyncClient, condition: str) -> None:
    assert (await client.get("/blob", headers={"If-None-Match": condition})).status_code == 200


async def test_several_lines_of_a_condition_are_one_list(client: httpx.AsyncClient) -> None:
    answer = await client.get("/blob", headers=[("If-None-Match", '"x"'), ("If-None-Match", TAG)])
    assert answer.status_code == 304


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_bytes_that_are_no_longer_held_are_gone(
    client: httpx.AsyncClient, elsewhere: Elsewhere, method: str
) -> None:
    elsewhere.content = None
    assert (await client.request(method, "/blob", headers={"If-None-Match": TAG})).status_code == 410


async def test_the_end_of_a_blob_of_gigabytes_is_read_without_the_rest(huge: Huge) -> None:
    transport = httpx.ASGITransport(app=serve(huge))
    async with httpx.AsyncClient(transport=transport, base_url="http://lethe.test") as client:
        assert (await client.head("/blob")).headers["content-length"] == str(HUGE)
        for wanted in ("bytes=-4", f"bytes={HUGE - 4}-", f"bytes={HUGE - 4}-{HUGE}"):
            answer = await client.get("/blob", headers={"Range": wanted})
            assert (answer.status_code, answer.content) == (206, b"last")
            assert answer.headers["content-range"] == f"bytes {HUGE - 4}-{HUGE - 1}/{HUGE}"
    assert {reader.read_bytes for reader in huge.readers} == {4}


async def test_a_caller_who_goes_away_ends_the_reading_of_gigabytes(huge: Huge) -> None:
    sent = 0
    gone = anyio.Event()

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))
        assert not huge.readers or huge.readers[0].read_bytes - sent <= CHUNK, "reads on while nobody takes it"
        if sent >= 8 * CHUNK:
            gone.set()
        await anyio.sleep(0)

    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "GET",
        "scheme": "http", "path": "/blob", "raw_path": b"/blob", "query_string": b"", "root_path": "", "headers": [],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    with anyio.fail_after(60):
        await serve(huge)(scope, receive, send)
    (reader,) = huge.readers
    assert reader.closed
    assert reader.read_bytes < 64 * CHUNK
