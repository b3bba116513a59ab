"""Signed bytes: DSSE envelopes (https://github.com/secure-systems-lab/dsse) with one Ed25519 signature (RFC 8032).

An envelope is a JSON object: the payload and its type, and the signature with the id of its key. The signature is
over type and payload, so that bytes which were signed as one thing cannot be shown as another.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_public_key,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, Signature, SSlibKey

ALGORITHM = "ed25519"


class SigningError(Exception):
    """An envelope does not hold; the text says what is wrong with it and quotes none of it."""


@dataclass(frozen=True)
class PublicKey:
    """The half of a key that everybody may have. `raw` is its 32 bytes."""

    raw: bytes

    @classmethod
    def from_base64(cls, text: str) -> PublicKey:
        """Read base64 of the raw 32 bytes. Raises ValueError."""
        raw = base64.b64decode(text, validate=True)
        if len(raw) != 32:
            raise ValueError("an Ed25519 public key has 32 bytes")
        return cls(raw)

    @classmethod
    def from_pem(cls, text: str) -> PublicKey:
        """Read a PEM file's text. Raises ValueError."""
        try:
            key = load_pem_public_key(text.encode())
        except UnsupportedAlgorithm:
            raise ValueError("not an Ed25519 public key") from None
        if isinstance(key, Ed25519PublicKey):
            return cls(key.public_bytes_raw())
        raise ValueError("not an Ed25519 public key")

    @property
    def key_id(self) -> str:
        """sha256 (hex) of the DER: ``openssl pkey -pubin -in key.pem -outform DER | sha256sum``."""
        return hashlib.sha256(self._encoded(Encoding.DER)).hexdigest()

    @property
    def base64(self) -> str:
        """Base64 of the raw 32 bytes."""
        return base64.b64encode(self.raw).decode()

    @property
    def pem(self) -> str:
        """The PEM file's text."""
        return self._encoded(Encoding.PEM).decode()

    def _encoded(self, encoding: Encoding) -> bytes:
        key = Ed25519PublicKey.from_public_bytes(self.raw)
        return key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)

    def _described(self) -> SSlibKey:
        return SSlibKey(self.key_id, ALGORITHM, ALGORITHM, {"public": self.raw.hex()})


class PrivateKey:
    """The half of a key that signs."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(key.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> PrivateKey:
        """A new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def parse(cls, text: str) -> PrivateKey:
        """Read what `export` wrote, or ``openssl genpkey -algorithm ed25519 -outform DER | base64 -w0``.

        Raises:
            ValueError: the text is nothing of the kind. It is not quoted.
        """
        wanted = "must be base64 of the PKCS #8 DER of an Ed25519 private key"
        try:
            key = load_der_private_key(base64.b64decode(text, validate=True), password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError(wanted) from None
        if isinstance(key, Ed25519PrivateKey):
            return cls(key)
        raise ValueError(wanted)

    def export(self) -> str:
        """The key on one line: base64 of its PKCS #8 DER."""
        der = self._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        return base64.b64encode(der).decode()

    def sign(self, payload: bytes, payload_type: str) -> bytes:
        """Sign a payload; the envelope's bytes."""
        envelope = Envelope(payload, payload_type, {})
        envelope.sign(CryptoSigner(self._key, self.public._described()))
        return _EnvelopeFile.model_validate(envelope.to_dict()).written()


@dataclass(frozen=True)
class Signed:
    """What an envelope holds, and the key whose signature it carries."""

    payload: bytes
    payload_type: str
    key: PublicKey


def open_envelope(data: bytes, keys: Iterable[PublicKey]) -> Signed:
    """Check an envelope's signature and give what it holds.

    Envelopes are accepted in the one form in which `PrivateKey.sign` writes them, so that every byte of them counts.

    Args:
        data: the envelope's bytes.
        keys: those that are trusted.

    Raises:
        SigningError: it is no such envelope, its key is not among `keys`, or the signature does not hold.
    """
    read = _read(data)
    signature, trusted = read.signatures[0], {key.key_id: key for key in keys}
    key = trusted.get(signature.keyid)
    if key is None:
        raise SigningError("it was signed with a key that is not among the trusted ones")
    try:
        payload, sig = _decode(read.payload), _decode(signature.sig)
    except ValueError:
        raise SigningError("it is no DSSE envelope: payload or signature is not base64") from None
    envelope = Envelope(payload, read.payload_type, {key.key_id: Signature(key.key_id, sig.hex())})
    try:
        envelope.verify([key._described()], threshold=1)
    except VerificationError:
        raise SigningError(f"its signature by key {key.key_id} does not hold: signature or payload changed") from None
    return Signed(payload, read.payload_type, key)


class _SignatureField(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    keyid: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    sig: str


class _EnvelopeFile(BaseModel):
    """The JSON of an envelope."""

    model_config = ConfigDict(extra="forbid", strict=True)

    payload: str
    payload_type: Annotated[str, Field(alias="payloadType")]
    signatures: list[_SignatureField]

    def written(self) -> bytes:
        """The only form that is accepted."""
        return (json.dumps(self.model_dump(by_alias=True), separators=(",", ":")) + "\n").encode()


def _decode(text: str) -> bytes:
    """Base64 in its only form: the bits that the last character has left over count, too. Raises ValueError."""
    decoded = base64.b64decode(text, validate=True)
    if base64.b64encode(decoded).decode() != text:
        raise ValueError
    return decoded


def _read(data: bytes) -> _EnvelopeFile:
    try:
        envelope = _EnvelopeFile.model_validate_json(data)
    except ValidationError:
        raise SigningError("it is no DSSE envelope") from None
    if len(envelope.signatures) != 1:
        raise SigningError(f"it carries {len(envelope.signatures)} signatures instead of one")
    if envelope.written() != data:
        raise SigningError("it is not in the form in which envelopes are written here")
    return envelope
