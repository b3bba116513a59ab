"""Secrets of receivers, and signatures by Standard Webhooks 1.0.

What is signed is ``id.timestamp.body``. ``v1`` is HMAC-SHA256 under a secret that both sides hold (``whsec_``),
``v1a`` Ed25519 under a key whose public half anybody may have (``whpk_``).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from app.kit.crypto import KeyRing, WrappedKey

Signature = Literal["v1", "v1a"]
_HALF = 32


@dataclass(frozen=True, repr=False)
class Secret:
    """An HMAC secret and an Ed25519 seed, 32 bytes each."""

    hmac_key: bytes
    seed: bytes

    @classmethod
    def generate(cls) -> Secret:
        """A new one."""
        return cls(os.urandom(_HALF), os.urandom(_HALF))

    @classmethod
    def unwrap(cls, ring: KeyRing, key_id: str, wrapped: bytes, context: str) -> Secret:
        """What `wrap` gave. Raises CryptoError."""
        plain = ring.unwrap(WrappedKey(key_id, wrapped), context)
        return cls(plain[:_HALF], plain[_HALF:])

    def wrap(self, ring: KeyRing, context: str) -> WrappedKey:
        """Encrypted under the current key, bound to `context`."""
        return ring.wrap(self.hmac_key + self.seed, context)

    @property
    def shown(self) -> str:
        """The HMAC secret as a receiver is given it, once."""
        return "whsec_" + _base64(self.hmac_key)

    @property
    def public_key(self) -> bytes:
        """The 32 bytes of the public key."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw()

    def sign(self, kind: Signature, message: bytes) -> str:
        """One signature, with its version in front."""
        if kind == "v1":
            return "v1," + _base64(hmac.digest(self.hmac_key, message, hashlib.sha256))
        return "v1a," + _base64(Ed25519PrivateKey.from_private_bytes(self.seed).sign(message))


def context_of(tenant_id: str, secret_id: str) -> str:
    """What binds a wrapped secret to its row."""
    return f"webhook-secret:{tenant_id}:{secret_id}"


def public_text(public_key: bytes) -> str:
    """A public key as a receiver is given it."""
    return "whpk_" + _base64(public_key)


def signed_headers(
    message_id: str, timestamp: int, body: bytes, secrets: Collection[Secret], kinds: Collection[Signature]
) -> dict[str, str]:
    """The headers of a delivery. All secrets sign, so that a receiver may still hold the one before.

    Args:
        timestamp: seconds since 1970.
    """
    message = f"{message_id}.{timestamp}.".encode() + body
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(secret.sign(kind, message) for secret in secrets for kind in kinds),
    }


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
