"""API keys: made of random bits, kept as a keyed hash.

A fast hash is right here: 196 random bits cannot be guessed, whatever the hash costs. The checksum lets a scanner of
source code tell a leaked key from a look-alike (`lethe_[0-9A-Za-z]{39}`), and a typing error be told without a query.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import zlib

PREFIX = "lethe_"
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM, _CHECKSUM = 33, 6
_KEY = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_RANDOM + _CHECKSUM}}}")
# Keys were 24 random bytes in base64 before they had a checksum. They go on working.
_KEY_WITHOUT_CHECKSUM = re.compile(rf"{PREFIX}[0-9A-Za-z_-]{{32}}")


def new_key() -> str:
    """A bearer key with 196 random bits and a checksum."""
    start = PREFIX + "".join(secrets.choice(_DIGITS) for _ in range(_RANDOM))
    return start + _checksum(start)


def well_formed(key: str) -> bool:
    """Whether a text can be a key at all."""
    if _KEY.fullmatch(key):
        return key[-_CHECKSUM:] == _checksum(key[:-_CHECKSUM])
    return _KEY_WITHOUT_CHECKSUM.fullmatch(key) is not None


def key_hash(key: str, pepper: bytes) -> bytes:
    """HMAC-SHA256 of a key under the server's pepper: useless to who reads the database alone."""
    return hmac.digest(pepper, key.encode(), hashlib.sha256)


def _checksum(text: str) -> str:
    """CRC-32 in base 62, six digits."""
    rest, digits = zlib.crc32(text.encode()), ""
    for _ in range(_CHECKSUM):
        rest, digit = divmod(rest, len(_DIGITS))
        digits = _DIGITS[digit] + digits
    return digits
