"""Opens and destroys stored datasets. Used by the web side and by workers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from app.datasets.fingerprints import IndexBuilder
from app.datasets.intake import INDEX, context
from app.datasets.tables import Dataset
from app.kit.crypto import (
    HEADER,
    SEALED_CHUNK,
    CryptoError,
    EncryptingWriter,
    KeyRing,
    WrappedKey,
    decrypt_chunks,
    decrypt_stream,
)
from app.kit.storage import Storage

_DIGEST_BYTES = 16
_PIECE = 1024**2


class Vault:
    """The way from a dataset's row to its plaintext."""

    def __init__(self, storage: Storage, ring: KeyRing) -> None:
        self._storage = storage
        self._ring = ring

    def lines(self, dataset: Dataset) -> Iterator[bytes]:
        """The records' lines, without line ends.

        Raises:
            CryptoError: the dataset was purged, or its blob was changed.
            FileNotFoundError: the blob is gone.
        """
        return _lines(self._chunks(dataset, dataset.blob_key, "records"))

    def lines_from(self, dataset: Dataset, place: float) -> Iterator[bytes]:
        """The lines behind a place between 0, the start, and 1, without reading what is before it. As `lines`."""
        size = self._storage.size(dataset.blob_key)
        first = int((size - HEADER) / SEALED_CHUNK * place)
        start = HEADER + first * SEALED_CHUNK
        header = self._storage.open_range(dataset.blob_key, 0, HEADER)
        source = self._storage.open_range(dataset.blob_key, start, size - start)
        with closing(header), closing(source):
            bound = context(dataset.tenant_id, dataset.id, "records")
            chunks = decrypt_chunks(header.read(HEADER), source, self._data_key(dataset), bound, first)
            lines = _lines(chunks)
            if first:
                next(lines, None)  # its beginning lies in the chunk before
            yield from lines

    def index(self, dataset: Dataset) -> Iterator[bytes]:
        """The sorted index of the records' digests, in pieces (app.datasets.fingerprints). Raises as `lines` does."""
        if dataset.digests_key.endswith(f"/{INDEX}"):
            yield from self._chunks(dataset, dataset.digests_key, INDEX)
            return
        # Version 0.1 stored the digests alone, in the order of the records.
        builder = IndexBuilder(self._storage.scratch)
        try:
            rest, line = b"", 0
            for chunk in self._chunks(dataset, dataset.digests_key, "digests"):
                data = rest + chunk
                whole = len(data) - len(data) % _DIGEST_BYTES
                for start in range(0, whole, _DIGEST_BYTES):
                    line += 1
                    builder.add(data[start : start + _DIGEST_BYTES], line)
                rest = data[whole:]
            yield from builder.entries()
        finally:
            builder.close()

    def delete_blobs(self, dataset: Dataset) -> None:
        """Remove the ciphertext. Whoever calls this has destroyed the data key before."""
        self._storage.delete(dataset.blob_key)
        self._storage.delete(dataset.digests_key)

    def store(self, dataset: Dataset, key: str, data: bytes) -> None:
        """Encrypt what was derived from the records as they are, in a blob that opens under this storage key only.

        Raises:
            CryptoError: the dataset was purged.
            OSError: the blob cannot be written; one that was there before is kept.
        """
        data_key = self._data_key(dataset)
        with self._storage.create(key) as sink:
            writer = EncryptingWriter(sink, data_key, context(dataset.tenant_id, dataset.id, key))
            for start in range(0, len(data), _PIECE):
                writer.write(data[start : start + _PIECE])
            writer.close()

    def fetch(self, dataset: Dataset, key: str) -> bytes:
        """What `store` has encrypted. Raises as `lines` does."""
        return b"".join(self._chunks(dataset, key, key))

    def _chunks(self, dataset: Dataset, key: str, part: str) -> Iterator[bytes]:
        data_key = self._data_key(dataset)
        with self._storage.open(key) as blob:
            yield from decrypt_stream(blob, data_key, context(dataset.tenant_id, dataset.id, part))

    def _data_key(self, dataset: Dataset) -> bytes:
        if dataset.wrapped_key is None:
            raise CryptoError("the dataset was purged")
        wrapped = WrappedKey(dataset.key_id, dataset.wrapped_key)
        return self._ring.unwrap(wrapped, context(dataset.tenant_id, dataset.id, "key"))


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest
