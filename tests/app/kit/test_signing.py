"""Keys in every form that people have them in, and envelopes that other libraries read."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from app.kit.signing import PrivateKey, PublicKey, SigningError, open_envelope


def test_a_key_comes_back_from_its_text() -> None:
    key = PrivateKey.generate()
    assert "\n" not in key.export()
    again = PrivateKey.parse(key.export())
    assert again.public == key.public
    assert open_envelope(again.sign(b"x", "text"), [key.public]).payload == b"x"


def test_two_keys_are_different() -> None:
    assert PrivateKey.generate().public.key_id != PrivateKey.generate().public.key_id


def test_a_public_key_comes_back_from_both_of_its_forms() -> None:
    key = PrivateKey.generate().public
    assert PublicKey.from_base64(key.base64) == PublicKey.from_pem(key.pem) == key


def curve_key() -> str:
    """A private key of another kind."""
    key = ec.generate_private_key(ec.SECP256R1())
    return base64.b64encode(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())).decode()


def locked_key() -> str:
    """One under a password."""
    key = ed25519.Ed25519PrivateKey.generate()
    der = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    return base64.b64encode(der).decode()


@pytest.mark.parametrize("text", ["", "hush-hush", "AAAA", "A" * 44, curve_key(), locked_key()])
def test_what_is_no_private_key_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=r"^must be base64 of the PKCS #8 DER of an Ed25519 private key$") as refusal:
        PrivateKey.parse(text)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize("text", ["", "AAAA", "!" * 44])
def test_what_is_no_public_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        PublicKey.from_base64(text)
    with pytest.raises(ValueError, match=r"."):
        PublicKey.from_pem(text)


def shell(script: str, folder: Path) -> str:
    """What a line of the guides prints."""
    done = subprocess.run(["/bin/sh", "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.skipif(shutil.which("openssl") is None, reason="compares with openssl")
def test_openssl_makes_the_same_keys_and_ids(tmp_path: Path) -> None:
    key = PrivateKey.parse(shell("openssl genpkey -algorithm ed25519 -outform DER | openssl base64 -A", tmp_path))
    (tmp_path / "key.pem").write_text(key.public.pem)
    shown = shell("openssl pkey -pubin -in key.pem -outform DER | sha256sum", tmp_path)
    assert shown.split()[0] == key.public.key_id


def test_the_right_one_of_several_keys_is_taken() -> None:
    keys = [PrivateKey.generate() for _ in range(3)]
    for key in keys:
        signed = open_envelope(key.sign(b"payload", "type"), [one.public for one in keys])
        assert (signed.payload, signed.payload_type, signed.key) == (b"payload", "type", key.public)


def test_without_keys_nothing_holds() -> None:
    with pytest.raises(SigningError, match="not among the trusted"):
        open_envelope(PrivateKey.generate().sign(b"x", "text"), [])


@pytest.mark.parametrize("text", [" {}", "{}\n\n", '{"x":1,{}'])
def test_an_envelope_has_only_one_form(text: str) -> None:
    key = PrivateKey.generate()
    envelope = key.sign(b"x", "text").decode()
    changed = text.replace("{}", envelope.strip()).encode()
    with pytest.raises(SigningError):
        open_envelope(changed, [key.public])


def test_a_field_that_is_there_twice_is_refused() -> None:
    # Readers differ in which one they take.
    key = PrivateKey.generate()
    envelope = key.sign(b"x", "text").decode()
    twice = envelope.replace('{"payload"', '{"payloadType":"other","payload"', 1)
    assert json.loads(twice)["payloadType"] == "text"
    with pytest.raises(SigningError, match="not in the form"):
        open_envelope(twice.encode(), [key.public])
