"""Requests to addresses that a caller chose, closed against server-side request forgery.

A URL is taken apart once (`app.kit.addresses`). Its name is resolved once; all its addresses must be public; and the
connection goes to such an address, while TLS and the Host header go on naming the name. So nothing that a name server
says later counts. Redirects are answers like any other, proxies of the environment are not used, and one deadline
covers all of it: resolving, connecting, sending, and reading the little that is read.
"""

from __future__ import annotations

import ipaddress
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from queue import Empty, SimpleQueue
from typing import Any

import httpcore

from app.kit.addresses import Policy, Target, check_address, check_url

MAX_ADDRESSES = 4  # of one name are tried


class NoAnswer(Exception):
    """The request was sent or tried, and no answer came. `reason` is one word of ours."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Answer:
    """What came back. `body` is its first bytes, as they came over the wire; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def post(url: str, body: bytes, headers: Mapping[str, str], policy: Policy) -> Answer:
    """Send a body and read the answer's status, headers and first bytes. Blocks up to `policy.timeout` seconds.

    Never call it within a transaction: it would hold the database for as long as a stranger likes.

    Raises:
        Refused: the URL, or an address that its name has now, is not allowed.
        NoAnswer: no name, no connection, no TLS, no HTTP, or not in time.
    """
    deadline = _Deadline(policy.timeout)
    target = check_url(url, policy)
    addresses = _addresses(target, policy, deadline)
    # A caller's Host would send the request to another site behind the same address.
    named = [(name, value) for name, value in headers.items() if name.lower() != "host"]
    context = policy.trust or _system_trust()
    backend = _Pinned(addresses, deadline)
    with httpcore.ConnectionPool(ssl_context=context, network_backend=backend, http2=False) as pool:
        try:
            return _exchange(pool, target, body, [("Host", target.authority), *named], policy.limit)
        except httpcore.TimeoutException:
            raise NoAnswer("timeout") from None
        except httpcore.ConnectError as error:
            tls = isinstance(error.__cause__ or error.__context__, ssl.SSLError)
            raise NoAnswer("tls_failed" if tls else "connection_failed") from None
        except (httpcore.NetworkError, httpcore.ProtocolError):
            raise NoAnswer("broken_answer") from None


@lru_cache(maxsize=1)
def _system_trust() -> ssl.SSLContext:
    return ssl.create_default_context()


def _exchange(
    pool: httpcore.ConnectionPool, target: Target, body: bytes, headers: list[tuple[str, str]], limit: int
) -> Answer:
    url = httpcore.URL(scheme=target.scheme, host=target.host, port=target.port, target=target.path)
    with pool.stream("POST", url, headers=headers, content=body) as response:
        received = b""
        for chunk in response.iter_stream():
            received += chunk
            if len(received) >= limit:
                break
        named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        return Answer(response.status, named, received[:limit])


def _addresses(target: Target, policy: Policy, deadline: _Deadline) -> list[str]:
    """The addresses to which the request may go; all that the name has are checked."""
    try:
        found = _in_time(lambda: policy.resolve(target.host, target.port), deadline.left())
        addresses = [ipaddress.ip_address(text) for text in found]
    except (OSError, ValueError):
        raise NoAnswer("name_not_found") from None
    if not addresses:
        raise NoAnswer("name_not_found")
    for address in addresses:
        check_address(target, address, policy)
    return [str(address) for address in addresses[:MAX_ADDRESSES]]


def _in_time(call: Callable[[], Sequence[str]], seconds: float) -> Sequence[str]:
    """What `call` gives. The system's resolver knows no deadline, so it is left behind where it takes too long."""
    outcome: SimpleQueue[Sequence[str] | Exception] = SimpleQueue()

    def run() -> None:
        try:
            outcome.put(call())
        except Exception as error:  # raised again by who waits
            outcome.put(error)

    threading.Thread(target=run, name="resolve", daemon=True).start()
    try:
        got = outcome.get(timeout=seconds)
    except Empty:
        raise NoAnswer("timeout") from None
    if isinstance(got, Exception):
        raise got
    return got


class _Deadline:
    """One clock for everything that a request does."""

    def __init__(self, seconds: float) -> None:
        self._at = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds that are left. Raises NoAnswer when there are none."""
        left = self._at - time.monotonic()
        if left <= 0:
            raise NoAnswer("timeout")
        return left


class _Pinned(httpcore.NetworkBackend):
    """Connects to addresses that were checked, whatever it is asked for."""

    def __init__(self, addresses: Sequence[str], deadline: _Deadline) -> None:
        self._addresses, self._deadline = addresses, deadline
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A connection to the first address that takes one."""
        del host, timeout, local_address
        for place, address in enumerate(self._addresses, start=1):
            # The last one may take all the time that is left, the others an equal share.
            share = self._deadline.left() / (len(self._addresses) - place + 1)
            try:
                return _Timed(self._backend.connect_tcp(address, port, share, None, socket_options), self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if place == len(self._addresses):
                    raise
        raise AssertionError("there is always an address")


class _Timed(httpcore.NetworkStream):
    """A connection that ends with the deadline, however many bytes trickle in before."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: _Deadline) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002 - the deadline's
        """Read what is there."""
        return self._stream.read(max_bytes, self._deadline.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002 - the deadline's
        """Write all of it, in parts, so that a peer that takes its time meets the deadline."""
        for start in range(0, len(buffer), 2**14):
            self._stream.write(buffer[start : start + 2**14], self._deadline.left())

    def close(self) -> None:
        """Close it."""
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002 - the deadline's
    ) -> httpcore.NetworkStream:
        """The same under TLS, for the name and not the address."""
        stream = self._stream.start_tls(ssl_context, server_hostname, self._deadline.left())
        return _Timed(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's own signature
        """What is known of the connection."""
        return self._stream.get_extra_info(info)
