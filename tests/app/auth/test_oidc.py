"""Bearer tokens of an identity provider, a real one on a local socket, and the attacks on them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from fastapi import FastAPI
from pydantic import ValidationError
from sqlalchemy import Engine

from app.auth import jwks
from app.auth.keys import new_key
from app.main import create_app
from app.settings import Settings
from tests.app.audit.test_record import entries
from tests.app.conftest import caller, make_key

AUDIENCE = "https://lethe.example"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
SHORT_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - to be refused
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def public(key: Any, key_id: str, **more: str) -> dict[str, Any]:
    """The public half as a provider lists it."""
    names: dict[type, tuple[str, Any]] = {
        rsa.RSAPrivateKey: ("RS256", jwt.algorithms.RSAAlgorithm),
        ec.EllipticCurvePrivateKey: ("ES256", jwt.algorithms.ECAlgorithm),
        ed25519.Ed25519PrivateKey: ("EdDSA", jwt.algorithms.OKPAlgorithm),
    }
    name, algorithm = next(value for kind, value in names.items() if isinstance(key, kind))
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": key_id, "alg": name, **more}


Status = Callable[..., Awaitable[int]]


@dataclass
class Issuer:
    """An identity provider: what it lists and what it was asked."""

    url: str = ""
    keys: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    away: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    def answer(self, path: str) -> dict[str, Any] | None:
        """The document at a path."""
        self.asked.append(path)
        if self.away:
            return None
        discovery = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | self.about
        return {"/.well-known/openid-configuration": discovery, "/keys": {"keys": self.keys}}.get(path)

    def claims(self, **changed: Any) -> dict[str, Any]:
        """Claims that are accepted; None leaves one out."""
        now = int(time.time())
        usual = {
            "iss": self.url, "aud": AUDIENCE, "sub": "jane.doe@example.org", "iat": now, "nbf": now, "exp": now + 300,
            "tenant": "ours", "scope": "openid jobs:read audit:read",
        }  # fmt: skip
        return {name: value for name, value in (usual | changed).items() if value is not None}

    def token(self, key: Any = RSA, key_id: str = "k1", algorithm: str = "RS256", **changed: Any) -> str:
        """A signed token."""
        return jwt.encode(self.claims(**changed), key, algorithm, headers={"kid": key_id})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """A provider with one RSA key on a real socket."""
    provider = Issuer(keys=[public(RSA, "k1")])

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = provider.answer(self.path)
            self.send_response(200 if document is not None else 503)
            self.end_headers()
            self.wfile.write(json.dumps(document).encode())

        def log_message(self, format: str, *arguments: object) -> None:
            """Prints nothing."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    provider.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield provider
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def settings(settings: Settings, issuer: Issuer) -> Settings:
    """Settings that name the provider."""
    return settings.model_copy(update={"oidc_issuer": issuer.url, "oidc_audience": AUDIENCE})


@pytest.fixture
def status(app: FastAPI, engine: Engine) -> Status:
    """What a list of jobs answers to a token."""
    make_key(engine, "ours")

    async def ask(token: str, path: str = "/unlearn-jobs") -> int:
        async with caller(app, token) as client:
            return (await client.get(path)).status_code

    return ask


async def test_a_token_does_what_its_scopes_allow_in_its_tenant(issuer: Issuer, status: Status) -> None:
    assert await status(issuer.token()) == 200
    assert await status(issuer.token(), "/audit") == 200
    assert await status(issuer.token(), "/adapters") == 403
    assert await status(issuer.token(scope=["adapters:read"]), "/adapters") == 200
    assert await status(issuer.token(scope="")) == 403
    assert await status(issuer.token(scope="admin"), "/api-keys") == 200


async def test_every_allowed_algorithm_is_verified(issuer: Issuer, status: Status) -> None:
    issuer.keys += [public(EC, "k2"), public(ED, "k3")]
    assert await status(issuer.token(EC, "k2", "ES256")) == 200
    assert await status(issuer.token(ED, "k3", "EdDSA")) == 200


async def test_tokens_that_are_not_for_us_now_are_refused(issuer: Issuer, status: Status) -> None:
    now = int(time.time())
    refused: dict[str, dict[str, Any]] = {
        "for somebody else": {"aud": "https://other.example"},
        "for nobody": {"aud": None},
        "of another issuer": {"iss": "https://evil.example"},
        "of no issuer": {"iss": None},
        "expired": {"exp": now - 60},
        "endless": {"exp": None},
        "not yet": {"nbf": now + 120},
        "issued in the future": {"iat": now + 120},
        "of nobody": {"sub": None},
        "of no tenant": {"tenant": None},
        "of an unknown tenant": {"tenant": "nobody"},
        "of a tenant that is no name": {"tenant": ["ours"]},
        "without scopes": {"scope": None},
    }
    for why, claims in refused.items():
        assert await status(issuer.token(**claims)) == 401, why
    # Clocks may differ a little.
    assert await status(issuer.token(exp=now - 5, nbf=now + 5)) == 200


def forged(header: dict[str, Any], claims: dict[str, Any], secret: bytes | None) -> str:
    """A token with any header, unsigned or under HMAC-SHA256."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    signature = hmac.digest(secret, b".".join(parts), hashlib.sha256) if secret else b""
    return b".".join([*parts, base64.urlsafe_b64encode(signature).rstrip(b"=")]).decode()


async def test_forged_tokens_are_refused(issuer: Issuer, status: Status) -> None:
    issuer.keys += [
        {"kty": "oct", "kid": "shared", "alg": "HS256", "k": base64.urlsafe_b64encode(b"s" * 32).decode()},
        public(OTHER_RSA, "encrypts", use="enc"),
    ]
    pem = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    claims = issuer.claims()
    for name in ("none", "None", "NONE"):
        assert await status(forged({"alg": name, "kid": "k1"}, claims, None)) == 401
    assert await status(forged({"alg": "HS256", "kid": "k1"}, claims, pem)) == 401
    assert await status(forged({"alg": "HS256", "kid": "shared"}, claims, b"s" * 32)) == 401
    assert await status(forged({"alg": "RS256", "kid": "k1"}, claims, pem)) == 401
    assert await status(issuer.token(OTHER_RSA)) == 401
    assert await status(issuer.token(OTHER_RSA, "encrypts")) == 401
    assert await status(jwt.encode(claims, RSA, "RS256")) == 401
    embedded = {"kid": "evil", "jwk": public(OTHER_RSA, "evil"), "jku": "http://127.0.0.1:1/keys"}
    assert await status(jwt.encode(claims, OTHER_RSA, "RS256", headers=embedded)) == 401
    header, body, signature = issuer.token().split(".")
    changed = base64.urlsafe_b64encode(json.dumps(claims | {"scope": "admin"}).encode()).rstrip(b"=").decode()
    assert await status(f"{header}.{changed}.{signature}") == 401
    assert await status(f"{header}.{body}.") == 401
    assert await status("a.b.c") == 401
    assert await status(f"{header}.{body}.{'A' * 20_000}") == 401
    # What all of them lack is a good signature and nothing else.
    assert await status(issuer.token()) == 200


async def test_a_weak_key_of_the_provider_verifies_nothing(issuer: Issuer, status: Status) -> None:
    issuer.keys.append(public(SHORT_RSA, "short"))
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = issuer.token(SHORT_RSA, "short")
    assert await status(token) == 401


async def test_a_flood_of_unknown_key_ids_asks_the_provider_once(issuer: Issuer, status: Status) -> None:
    assert await status(issuer.token()) == 200
    for number in range(20):
        assert await status(issuer.token(OTHER_RSA, f"made-up-{number}")) == 401
    assert issuer.asked.count("/keys") == 1
    assert await status(issuer.token()) == 200


async def test_a_new_key_of_the_provider_is_fetched_after_the_interval(
    issuer: Issuer, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await status(issuer.token()) == 200
    issuer.keys = [public(OTHER_RSA, "k2")]
    assert await status(issuer.token(OTHER_RSA, "k2")) == 401
    monkeypatch.setattr(jwks, "MIN_INTERVAL", 0.0)
    assert await status(issuer.token(OTHER_RSA, "k2")) == 200
    # What the provider lists no more is no more good.
    assert await status(issuer.token()) == 401


async def test_a_provider_that_is_away_locks_nobody_out_whose_key_is_known(
    issuer: Issuer, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "MIN_INTERVAL", 0.0)
    monkeypatch.setattr(jwks, "LIFETIME", 0.0)
    issuer.away = True
    assert await status(issuer.token()) == 503
    issuer.away = False
    assert await status(issuer.token()) == 200
    issuer.away = True
    assert await status(issuer.token()) == 200
    monkeypatch.setattr(jwks, "MAX_AGE", 0.0)
    assert await status(issuer.token()) == 503


@pytest.mark.parametrize(
    "about",
    [
        {"issuer": "https://evil.example"},
        {"jwks_uri": "http://evil.example/keys"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": None},
    ],
)
async def test_a_discovery_document_that_leads_elsewhere_is_not_followed(
    issuer: Issuer, status: Status, about: dict[str, Any]
) -> None:
    issuer.about = about
    assert await status(issuer.token()) == 503
    assert "/keys" not in issuer.asked


async def test_the_audit_chain_names_a_token_by_a_digest_of_its_subject(
    app: FastAPI, issuer: Issuer, engine: Engine
) -> None:
    make_key(engine, "ours")
    body = {"name": "x", "scopes": ["jobs:read"]}
    for subject in ("jane.doe@example.org", "jane.doe@example.org", "john"):
        async with caller(app, issuer.token(scope="admin", sub=subject)) as client:
            assert (await client.post("/api-keys", json=body)).status_code == 201
    actors = [entry.actor for entry in entries(engine) if entry.actor != "system"]
    assert actors[0] == actors[1] != actors[2]
    for actor in actors:
        kind, _, digest = actor.partition(":")
        assert (kind, len(digest)) == ("oidc", 32)
    # Whoever guesses the subject cannot confirm it without the server's secret.
    plain = hashlib.sha256(f"oidc\0{issuer.url}\0jane.doe@example.org".encode()).hexdigest()
    assert not any(actor.endswith(plain[:32]) for actor in actors)


async def test_tokens_are_never_logged_nor_answered(
    app: FastAPI, issuer: Issuer, engine: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    make_key(engine, "ours")
    good, bad = issuer.token(), issuer.token(exp=1)
    for token in (good, bad):
        async with caller(app, token) as client:
            response = await client.get("/unlearn-jobs")
            assert token not in response.text
    assert response.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    printed = "".join(capsys.readouterr())
    assert "ExpiredSignatureError" in printed
    for part in [*good.split("."), *bad.split("."), "jane.doe"]:
        assert part not in printed


async def test_api_keys_go_on_beside_tokens(app: FastAPI, engine: Engine, issuer: Issuer) -> None:
    async with caller(app, make_key(engine, "ours")) as client:
        assert (await client.get("/unlearn-jobs")).status_code == 200
    async with caller(app, new_key()) as client:
        assert (await client.get("/unlearn-jobs")).status_code == 401
    assert issuer.asked == []


async def test_without_a_provider_tokens_are_unknown_keys(settings: Settings, issuer: Issuer, engine: Engine) -> None:
    application = create_app(settings.model_copy(update={"oidc_issuer": None}))
    async with application.router.lifespan_context(application), caller(application, issuer.token()) as client:
        assert (await client.get("/unlearn-jobs")).status_code == 401
    assert issuer.asked == []


@pytest.mark.parametrize(
    "given",
    [
        {"oidc_issuer": "https://id.example"},
        {"oidc_issuer": "http://id.example", "oidc_audience": "a"},
        {"oidc_issuer": "id.example", "oidc_audience": "a"},
        {"oidc_issuer": "https://id.example?x=1", "oidc_audience": "a"},
    ],
)
def test_a_provider_that_is_not_safe_to_use_is_refused_at_the_start(
    settings: Settings, given: dict[str, Any]
) -> None:
    usual: dict[str, Any] = settings.model_dump(exclude={"oidc_issuer", "oidc_audience"})
    with pytest.raises(ValidationError, match=r"LETHE_OIDC|oidc_"):
        Settings(**usual, **given)
