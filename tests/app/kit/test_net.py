"""Attacks on the client for addresses that callers choose, over real sockets."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from app.kit.addresses import Policy, Refused, check_url, is_public
from app.kit.net import NoAnswer, post
from tests.app.kit.receivers import certificate, receiving, speaking

OPEN = Policy.parse(["127.0.0.0/8"])
CLOSED = Policy()


def send(url: str, policy: Policy = OPEN, **headers: str) -> int:
    """The status of what is answered to a small body."""
    return post(url, b'{"a":1}', {"Content-Type": "application/json", **headers}, policy).status


def test_a_request_arrives_as_it_was_sent() -> None:
    with receiving() as receiver:
        receiver.body, receiver.answer = b"thanks", {"X-Reply": "yes"}
        answer = post(f"{receiver.url}?a=%20b", b"body", {"X-Mine": "1"}, OPEN)
    (request,) = receiver.requests
    assert (request.path, request.body, request.headers["x-mine"]) == ("/hook?a=%20b", b"body", "1")
    assert request.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert (answer.status, answer.body, answer.headers["x-reply"]) == (200, b"thanks", "yes")


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example.com/",
        "https://hooks.example.com:22/",
        "https://hooks.example.com:0/",
        "https://hooks.example.com:99999/",
        "ftp://hooks.example.com/",
        "//hooks.example.com/",
        "https:hooks.example.com",
        "https://",
        "https:///path",
        "https://user:secret@hooks.example.com/",
        "https://hooks.example.com@127.0.0.1/",
        "https://127.0.0.1\\@hooks.example.com/",
        "https://hooks.example.com/a\\b",
        "https://hooks.example.com/#fragment",
        "https://hooks.example.com/a b",
        "https://hooks.example.com/\r\nX-Injected: 1",
        "https://hooks.example.com/\n",
        "https://h\u00f6oks.example.com/",
        "https://127\u30020\u30020\u30021/",
        "https://%31%32%37.0.0.1/",
        "https://[::1%25lo]/",
        "https://[::1/",
        "https://[v1.a]/",
        "https://hooks.example.com/" + "a" * 2048,
    ],
)
def test_what_is_no_plain_public_https_url_is_refused(url: str) -> None:
    with pytest.raises(Refused):
        check_url(url, CLOSED)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "127.0.0.0x1",
        "0",
        "0.0.0.0",  # noqa: S104
        "10.0.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.0.1",
        "192.88.99.1",
        "198.18.0.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "[::]",
        "[::1]",
        "[::127.0.0.1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[::ffff:8.8.8.8]",
        "[64:ff9b::7f00:1]",
        "[64:ff9b:1::1]",
        "[100::1]",
        "[2001::7f00:1]",
        "[2001:db8::1]",
        "[2002:7f00:1::]",
        "[3fff::1]",
        "[fc00::1]",
        "[fd00:ec2::254]",
        "[fe80::1]",
        "[fec0::1]",
        "[ff02::1]",
    ],
)
def test_addresses_that_are_not_public_are_refused_in_every_form(host: str) -> None:
    with pytest.raises(Refused):
        check_url(f"https://{host}/", CLOSED)


@pytest.mark.parametrize(
    "url", ["https://hooks.example.com", "https://8.8.8.8/", "https://[2606:4700::1111]:8443/x?y"]
)
def test_public_https_urls_are_accepted(url: str) -> None:
    assert check_url(url, CLOSED).usual


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450::1"])
def test_public_addresses_are_known_as_such(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "found", ["127.0.0.1", "10.1.2.3", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "fe80::1%lo"]
)
def test_a_name_that_leads_inside_is_refused_before_anything_is_sent(found: str) -> None:
    with pytest.raises(Refused):
        send("https://hooks.example.com/", Policy(resolve=lambda *_: ["8.8.8.8", found]))


def test_a_name_is_resolved_once_and_the_connection_goes_to_that_address() -> None:
    answers = [["127.0.0.2"], ["127.0.0.1"]]
    asked: list[str] = []

    def rebinding(name: str, port: int) -> Sequence[str]:
        asked.append(name)
        return answers.pop(0)

    with receiving("127.0.0.2") as meant, receiving("127.0.0.1", meant.port) as inside:
        policy = replace(Policy.parse(["127.0.0.2/32"]), resolve=rebinding)
        assert send(f"http://rebinding.test:{meant.port}/", policy) == 200
        assert (len(meant.requests), len(inside.requests), asked) == (1, 0, ["rebinding.test"])
        assert meant.requests[0].headers["host"] == f"rebinding.test:{meant.port}"
        with pytest.raises(Refused):
            send(f"http://rebinding.test:{meant.port}/", policy)
        assert inside.requests == []


def test_tls_names_and_checks_the_name_although_the_connection_goes_to_an_address(tmp_path: Path) -> None:
    server, client = certificate("hooks.example.test", tmp_path)
    names: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    policy = replace(OPEN, resolve=lambda *_: ["127.0.0.1"], trust=client)
    with receiving(tls=server) as receiver:
        assert send(f"https://hooks.example.test:{receiver.port}/", policy) == 200
        assert names == ["hooks.example.test"]
        with pytest.raises(NoAnswer) as failure:
            send(f"https://other.example.test:{receiver.port}/", policy)
        assert failure.value.reason == "tls_failed"
        with pytest.raises(NoAnswer):
            send(f"https://hooks.example.test:{receiver.port}/", replace(policy, trust=None))
    assert len(receiver.requests) == 1


def test_what_is_let_in_lets_in_nothing_else() -> None:
    named = replace(Policy.parse(["inside.test"]), resolve=lambda *_: ["127.0.0.1"])
    with receiving() as receiver:
        assert send(f"http://inside.test:{receiver.port}/", named) == 200
        for url in (f"http://outside.test:{receiver.port}/", receiver.url):
            with pytest.raises(Refused):
                send(url, named)
    elsewhere = replace(OPEN, resolve=lambda *_: ["8.8.8.8"])
    for url in ("http://plain.test/", "https://plain.test:22/"):
        with pytest.raises(Refused):
            send(url, elsewhere)


@pytest.mark.parametrize("text", ["10.0.0.1/8", "a/b", "127.1", "http://x", ""])
def test_a_policy_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="networks such as"):
        Policy.parse([text])


def test_a_redirect_is_not_followed() -> None:
    with receiving() as inside, receiving() as receiver:
        receiver.statuses, receiver.answer = [307], {"Location": inside.url}
        assert send(receiver.url) == 307
    assert inside.requests == []


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as proxy, receiving() as receiver:
        for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert send(receiver.url) == 200
    assert proxy.requests == []


def test_a_caller_cannot_name_another_host() -> None:
    with receiving() as receiver:
        assert send(receiver.url, Host="inside.test") == 200
    assert receiver.requests[0].headers["host"] == f"127.0.0.1:{receiver.port}"


def test_an_answer_that_trickles_meets_the_deadline() -> None:
    asked_to_end = threading.Event()

    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not asked_to_end.wait(0.02):
            connection.sendall(b"x")

    with speaking(trickle) as port:
        with pytest.raises(NoAnswer) as failure:
            send(f"http://127.0.0.1:{port}/", replace(OPEN, timeout=0.3))
        asked_to_end.set()
    assert failure.value.reason == "timeout"


def test_an_answer_without_end_is_read_only_as_far_as_allowed() -> None:
    sent = 0

    def flood(connection: socket.socket) -> None:
        nonlocal sent
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536

    with speaking(flood) as port:
        answer = post(f"http://127.0.0.1:{port}/", b"", {}, replace(OPEN, limit=100))
    assert answer.body == b"x" * 100
    assert sent < 64 * 2**20  # what the buffers of the kernel take


def test_compressed_answers_are_not_expanded() -> None:
    with receiving() as receiver:
        receiver.answer, receiver.body = {"Content-Encoding": "gzip"}, b"not gzip at all"
        assert post(receiver.url, b"", {}, OPEN).body == b"not gzip at all"


def test_headers_without_end_are_no_answer() -> None:
    def babble(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"X-More: " + b"x" * 8192 + b"\r\n")

    with speaking(babble) as port, pytest.raises(NoAnswer) as failure:
        send(f"http://127.0.0.1:{port}/")
    assert failure.value.reason == "broken_answer"


def test_what_speaks_no_http_is_no_answer() -> None:
    greeting = b"220 mail.example.com ESMTP\r\n"
    with speaking(lambda connection: connection.sendall(greeting)) as port, pytest.raises(NoAnswer) as failure:
        send(f"http://127.0.0.1:{port}/")
    assert failure.value.reason == "broken_answer"


def test_a_port_where_nobody_listens_is_no_answer() -> None:
    with receiving() as receiver:
        url = receiver.url
    with pytest.raises(NoAnswer) as failure:
        send(url)
    assert failure.value.reason == "connection_failed"


def test_the_next_address_is_tried_where_the_first_takes_no_connection() -> None:
    with receiving("127.0.0.1") as receiver:
        policy = replace(OPEN, resolve=lambda *_: ["127.0.0.9", "127.0.0.1"])
        assert send(f"http://two.test:{receiver.port}/", policy) == 200


def test_a_resolver_that_hangs_meets_the_deadline() -> None:
    asked_to_end = threading.Event()

    def hang(name: str, port: int) -> Sequence[str]:
        asked_to_end.wait(10)
        return ["8.8.8.8"]

    with pytest.raises(NoAnswer) as failure:
        send("https://slow.test/", Policy(resolve=hang, timeout=0.05))
    asked_to_end.set()
    assert failure.value.reason == "timeout"


@pytest.mark.parametrize("name", ["nowhere.invalid", "a..b", "a" * 70 + ".test"])
def test_a_name_without_an_address_is_no_answer(name: str) -> None:
    with pytest.raises(NoAnswer) as failure:
        send(f"https://{name}/", CLOSED)
    assert failure.value.reason == "name_not_found"
