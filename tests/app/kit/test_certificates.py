"""Which credentials are taken."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from app.kit.certificates import Credentials, self_signed

GOOD = base64.b64decode(self_signed("opendsr.example.org", 2048)).decode()
OTHER = base64.b64decode(self_signed("other.example.org", 2048)).decode()
KEY, CERTIFICATE = (GOOD[: GOOD.index("-----BEGIN CERT")], GOOD[GOOD.index("-----BEGIN CERT") :])
EDWARDS = (
    ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
)


def encoded(pem: str) -> str:
    """As it is set."""
    return base64.b64encode(pem.encode()).decode()


def test_key_and_certificate_are_read_in_either_order_with_the_chain() -> None:
    for pem in (GOOD, CERTIFICATE + KEY):
        credentials = Credentials.parse(encoded(pem))
        assert credentials.domain == "opendsr.example.org"
        assert "PRIVATE" not in credentials.chain_pem
    chain = Credentials.parse(encoded(GOOD + OTHER[OTHER.index("-----BEGIN CERT") :])).chain_pem
    assert chain.count("BEGIN CERTIFICATE") == 2
    assert chain.startswith(CERTIFICATE)


@pytest.mark.parametrize(
    "pem",
    [
        "", "no PEM", KEY, CERTIFICATE, KEY + GOOD, EDWARDS + CERTIFICATE,
        KEY + OTHER[OTHER.index("-----BEGIN CERT") :],
    ],
)  # fmt: skip
def test_what_cannot_speak_for_its_key_is_refused_and_not_quoted(pem: str) -> None:
    with pytest.raises(ValueError, match=r"private key|certificate") as error:
        Credentials.parse(encoded(pem))
    assert "BEGIN" not in str(error.value)


def test_names_that_stand_for_many_domains_and_short_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="no wildcard"):
        Credentials.parse(self_signed("*.example.org", 2048))
    with pytest.raises(ValueError, match="2048 bits"):
        Credentials.parse(self_signed("opendsr.example.org", 1024))
