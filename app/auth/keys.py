"""API keys: made of random bits, kept as a keyed hash.

A fast hash is right here: 192 random bits cannot be guessed, whatever the hash costs.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets

PREFIX = "lethe_"


def new_key() -> str:
    """A bearer key with 192 random bits."""
    return PREFIX + secrets.token_urlsafe(24)


def key_hash(key: str, pepper: bytes) -> bytes:
    """HMAC-SHA256 of a key under the server's pepper: useless to who reads the database alone."""
    return hmac.digest(pepper, key.encode(), hashlib.sha256)
