"""Envelope encryption: what goes in comes out, and nothing else opens."""

from __future__ import annotations

import base64
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.kit.crypto import CHUNK, CryptoError, EncryptingWriter, KeyRing, WrappedKey, decrypt_stream, new_data_key

KEY = b"d" * 32


def encrypt(data: bytes, key: bytes = KEY, context: str = "c") -> bytes:
    """The encrypted stream of some bytes."""
    sink = io.BytesIO()
    writer = EncryptingWriter(sink, key, context)
    writer.write(data)
    writer.close()
    return sink.getvalue()


def decrypt(blob: bytes, key: bytes = KEY, context: str = "c") -> bytes:
    """The plaintext of a stream."""
    return b"".join(decrypt_stream(io.BytesIO(blob), key, context))


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5])
def test_every_length_comes_back(size: int) -> None:
    data = bytes(index % 251 for index in range(size))
    assert decrypt(encrypt(data)) == data


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_the_way_it_is_written_does_not_matter(parts: list[bytes]) -> None:
    sink = io.BytesIO()
    writer = EncryptingWriter(sink, KEY, "c")
    for part in parts:
        writer.write(part)
    writer.close()
    assert decrypt(sink.getvalue()) == b"".join(parts)


@given(st.integers(min_value=0))
def test_any_changed_byte_is_noticed(place: int) -> None:
    blob = bytearray(encrypt(b"secret"))
    blob[place % len(blob)] ^= 1
    with pytest.raises(CryptoError):
        decrypt(bytes(blob))


def test_a_stream_cut_at_a_chunk_is_noticed() -> None:
    blob = encrypt(bytes(2 * CHUNK))
    header = 15
    with pytest.raises(CryptoError):
        decrypt(blob[: header + CHUNK + 16])
    with pytest.raises(CryptoError):
        decrypt(blob[:header])


def test_chunks_cannot_change_places() -> None:
    blob = encrypt(bytes(3 * CHUNK))
    header, size = 15, CHUNK + 16
    first, second, rest = (
        blob[header : header + size],
        blob[header + size : header + 2 * size],
        blob[header + 2 * size :],
    )
    with pytest.raises(CryptoError):
        decrypt(blob[:header] + second + first + rest)


def test_another_key_or_place_does_not_open_it() -> None:
    blob = encrypt(b"secret")
    with pytest.raises(CryptoError):
        decrypt(blob, key=b"e" * 32)
    with pytest.raises(CryptoError):
        decrypt(blob, context="another tenant")


def test_equal_plaintexts_look_different() -> None:
    assert encrypt(b"secret") != encrypt(b"secret")


def ring(*names: str) -> KeyRing:
    """A ring of keys with these ids."""
    return KeyRing.parse(",".join(f"{name}:{base64.b64encode(name.encode() * 16).decode()}" for name in names))


def test_old_keys_open_what_they_wrapped_and_new_ones_wrap() -> None:
    data_key = new_data_key()
    wrapped = ring("k0").wrap(data_key, "c")
    assert ring("k1", "k0").unwrap(wrapped, "c") == data_key
    assert ring("k1", "k0").wrap(data_key, "c").key_id == "k1"


@pytest.mark.parametrize("context", ["d", ""])
def test_a_wrapped_key_opens_in_its_own_place_only(context: str) -> None:
    wrapped = ring("k0").wrap(new_data_key(), "c")
    with pytest.raises(CryptoError):
        ring("k0").unwrap(wrapped, context)


def test_an_unknown_or_changed_key_does_not_open() -> None:
    wrapped = ring("k0").wrap(new_data_key(), "c")
    with pytest.raises(CryptoError, match="k0"):
        ring("k1").unwrap(wrapped, "c")
    with pytest.raises(CryptoError):
        ring("k0").unwrap(WrappedKey("k0", wrapped.ciphertext[:-1] + bytes([wrapped.ciphertext[-1] ^ 1])), "c")


@pytest.mark.parametrize("text", ["", "k1", "k1:", "k1:!!", "k1:" + base64.b64encode(b"short").decode()])
def test_a_malformed_ring_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="encryption keys must"):
        KeyRing.parse(text)
