"""Downloads that go on where they were cut off, and whose digest is checked before the file appears.

What has arrived lies beside the destination as ``NAME.SHA256.part``. The digest in its name is the entity tag of the
archive that it is a part of; sent as ``If-Range``, it makes the service send the rest of that very archive, or the
whole of another one.
"""

import fcntl
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO, Protocol

import httpx

from app.client import ApiError, ClientError, DamagedDownloadError, LetheClient, UnreachableError

_SHA256 = re.compile(r"[0-9a-f]{64}")


class Show(Protocol):
    """Shows how far a download is."""

    def __call__(self, done: int, total: int, resumed: int) -> None:
        """Called as bytes arrive.

        Args:
            done: bytes that are there.
            total: bytes of the whole.
            resumed: bytes that were there when this try began.
        """


def fetch(client: LetheClient, path: str, destination: Path, show: Show | None = None) -> str:
    """Save the bytes at `path` under `destination`, going on with what an earlier try has left; their sha256.

    A connection that breaks is opened again, as long as each try brings something.

    Raises:
        ApiError: the service refuses.
        UnreachableError: no answer, or a break before anything new came; what has arrived is kept.
        DamagedDownloadError: the bytes are not what the service announced; they are removed.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    while True:
        before = _held(destination)
        try:
            return _attempt(client, path, destination, show)
        except UnreachableError as error:
            held = _held(destination)
            if held > before:
                continue
            if held == 0:
                raise
            raise UnreachableError(f"{error}\n{held} bytes are kept; the same command goes on from there") from error


def _attempt(client: LetheClient, path: str, destination: Path, show: Show | None) -> str:
    part = _part(destination)
    headers = {"Accept-Encoding": "identity"}
    if part is not None:
        known = part.suffixes[-2][1:]
        headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": f'"{known}"'}
    try:
        with client.stream(path, headers) as response:
            return _receive(response, path, destination, show)
    except ApiError as error:
        if part is None or error.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # Nothing of the range is there: everything has arrived, or more than there is.
        return _finish(part, known, destination)


def _receive(response: httpx.Response, path: str, destination: Path, show: Show | None) -> str:
    sha256: str = response.headers.get("etag", "").strip('"')
    if not _SHA256.fullmatch(sha256):
        raise DamagedDownloadError(f"{path}: the service announces no sha256")
    target = destination.with_name(f"{destination.name}.{sha256}.part")
    with _opened(target) as file:
        if response.status_code == HTTPStatus.PARTIAL_CONTENT:
            _check_start(response, path, file.seek(0, 2))
        else:
            file.truncate(0)
            _drop_parts(destination, but=target)
        resumed = done = file.seek(0, 2)
        total = done + int(response.headers.get("content-length", 0))
        for piece in response.iter_raw():
            file.write(piece)
            done += len(piece)
            if show is not None:
                show(done, total, resumed)
    return _finish(target, sha256, destination)


def _check_start(response: httpx.Response, path: str, held: int) -> None:
    """Make sure that the rest begins where the part ends."""
    if not response.headers.get("content-range", "").startswith(f"bytes {held}-"):
        raise DamagedDownloadError(f"{path}: the service sent another range than was asked for")


def _finish(part: Path, sha256: str, destination: Path) -> str:
    with part.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        part.unlink()
        raise DamagedDownloadError(f"sha256 is {found}, announced {sha256}; what was downloaded is removed")
    part.chmod(0o644)
    part.replace(destination)
    return sha256


@contextmanager
def _opened(part: Path) -> Iterator[BinaryIO]:
    """The part, for nobody else meanwhile, closed to other users of the machine until it is whole."""
    part.touch(mode=0o600)
    with part.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ClientError(f"another download is writing {part}") from None
        yield file


def _part(destination: Path) -> Path | None:
    """What an earlier try has left."""
    return max(_parts(destination), key=lambda part: part.stat().st_size, default=None)


def _parts(destination: Path) -> list[Path]:
    start, end = f"{destination.name}.", ".part"
    return [
        path
        for path in destination.parent.iterdir()
        if path.name.startswith(start)
        and path.name.endswith(end)
        and _SHA256.fullmatch(path.name[len(start) : -len(end)])
    ]


def _held(destination: Path) -> int:
    part = _part(destination)
    return part.stat().st_size if part is not None else 0


def _drop_parts(destination: Path, but: Path) -> None:
    """Remove parts of archives that are not what is there now."""
    for part in _parts(destination):
        if part != but:
            part.unlink()
