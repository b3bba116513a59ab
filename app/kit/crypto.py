"""Envelope encryption of streams: AES-256-GCM in chunks, a data key per object, wrapped by a versioned key.

Layout of an encrypted stream: an 8-byte magic, a random 7-byte nonce prefix, then chunks. A chunk's nonce is
``prefix ‖ counter (4 bytes) ‖ last (1 byte)``, the STREAM construction (Hoang et al. 2015): chunks cannot be
reordered, dropped or cut off unnoticed. The associated data names what the bytes are and whose they are, so that a
blob moved to another place does not open.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MAGIC = b"LETHEv1\x00"
CHUNK = 64 * 1024
_TAG = 16
_PREFIX = 7
HEADER = len(MAGIC) + _PREFIX
SEALED_CHUNK = CHUNK + _TAG


class _Source(Protocol):
    def read(self, size: int, /) -> bytes: ...


class CryptoError(Exception):
    """A key is unknown, or bytes were changed, cut off or moved."""


@dataclass(frozen=True)
class WrappedKey:
    """A data key, encrypted under the key-encryption key called `key_id`."""

    key_id: str
    ciphertext: bytes


class KeyRing:
    """The key-encryption keys by id; the first wraps new data keys, all of them open old ones."""

    def __init__(self, keys: dict[str, bytes]) -> None:
        if not keys or any(len(key) != 32 for key in keys.values()):
            raise ValueError("encryption keys must be 32 bytes each, at least one")
        self._keys = keys
        self.current = next(iter(keys))

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Read ``id:base64,id:base64``.

        Raises:
            ValueError: the text has another form, or a key is not 32 bytes long.
        """
        keys: dict[str, bytes] = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            key_id, _, encoded = part.partition(":")
            try:
                keys[key_id] = base64.b64decode(encoded, validate=True)
            except binascii.Error:
                raise ValueError("encryption keys must read 'id:base64-of-32-bytes,...'") from None
        return cls(keys)

    def wrap(self, data_key: bytes, context: str) -> WrappedKey:
        """Encrypt a data key under the current key-encryption key, bound to `context`."""
        return WrappedKey(self.current, seal(self._keys[self.current], data_key, context))

    def unwrap(self, wrapped: WrappedKey, context: str) -> bytes:
        """Decrypt a data key.

        Raises:
            CryptoError: the key id is unknown, or the bytes were changed or belong to another context.
        """
        key = self._keys.get(wrapped.key_id)
        if key is None:
            raise CryptoError(f"no encryption key with id {wrapped.key_id!r}")
        return unseal(key, wrapped.ciphertext, context)


def derive_key(secret: bytes, purpose: str) -> bytes:
    """32 bytes for one purpose (HKDF, SHA-256); keys of two purposes tell nothing of each other or of `secret`."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=purpose.encode()).derive(secret)


def new_data_key() -> bytes:
    """32 random bytes."""
    return AESGCM.generate_key(bit_length=256)


def seal(key: bytes, plain: bytes, context: str) -> bytes:
    """Encrypt something short as a whole, bound to `context`: a random nonce, then ciphertext and tag."""
    nonce = os.urandom(12)
    return nonce + AESGCM(key).encrypt(nonce, plain, context.encode())


def unseal(key: bytes, sealed: bytes, context: str) -> bytes:
    """What `seal` encrypted. Raises CryptoError when the bytes were changed, or key or context is another."""
    try:
        return AESGCM(key).decrypt(sealed[:12], sealed[12:], context.encode())
    except (InvalidTag, ValueError):
        raise CryptoError("sealed bytes do not open: they were changed, or belong elsewhere") from None


class EncryptingWriter:
    """Encrypts what is written into `sink`; `close` writes the last chunk and leaves `sink` open."""

    def __init__(self, sink: BinaryIO, data_key: bytes, context: str) -> None:
        self._sink = sink
        self._cipher = AESGCM(data_key)
        self._context = context.encode()
        self._prefix = os.urandom(_PREFIX)
        self._counter = 0
        self._buffer = bytearray()
        sink.write(MAGIC + self._prefix)

    def write(self, data: bytes) -> None:
        """Add plaintext."""
        self._buffer += data
        # The last chunk is marked as such, so a full buffer is kept until more comes or the stream ends.
        while len(self._buffer) > CHUNK:
            self._seal(bytes(self._buffer[:CHUNK]), last=False)
            del self._buffer[:CHUNK]

    def close(self) -> None:
        """Write the last chunk."""
        self._seal(bytes(self._buffer), last=True)
        self._buffer.clear()

    def _seal(self, plain: bytes, *, last: bool) -> None:
        nonce = _nonce(self._prefix, self._counter, last=last)
        self._sink.write(self._cipher.encrypt(nonce, plain, self._context))
        self._counter += 1


def decrypt_stream(source: _Source, data_key: bytes, context: str) -> Iterator[bytes]:
    """Yield the plaintext chunk by chunk; each chunk is authentic before it is yielded.

    Raises:
        CryptoError: the bytes were changed, cut off, moved, or the key is another one.
    """
    return decrypt_chunks(source.read(HEADER), source, data_key, context)


def decrypt_chunks(header: bytes, source: _Source, data_key: bytes, context: str, first: int = 0) -> Iterator[bytes]:
    """`decrypt_stream` from chunk `first` on, at which `source` stands; `header` is the stream's first bytes."""
    if len(header) != HEADER or not header.startswith(MAGIC):
        raise CryptoError("not an encrypted stream")
    cipher, prefix, counter = AESGCM(data_key), header[len(MAGIC) :], first
    chunk = source.read(SEALED_CHUNK)
    while True:
        following = source.read(SEALED_CHUNK)
        try:
            yield cipher.decrypt(_nonce(prefix, counter, last=not following), chunk, context.encode())
        except InvalidTag:
            raise CryptoError("an encrypted stream was changed or cut off") from None
        if not following:
            return
        chunk, counter = following, counter + 1


def _nonce(prefix: bytes, counter: int, *, last: bool) -> bytes:
    return prefix + counter.to_bytes(4, "big") + (b"\x01" if last else b"\x00")
