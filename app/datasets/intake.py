"""Takes a dataset in as it arrives: checked line by line, encrypted at once, nothing kept when a line is bad."""

from __future__ import annotations

import hashlib
import hmac
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

from app.datasets.fingerprints import IndexBuilder
from app.datasets.records import Record, RecordError, digest, parse_record
from app.kit.crypto import EncryptingWriter, KeyRing, WrappedKey, new_data_key
from app.kit.ids import new_id
from app.kit.problems import MAX_ERRORS, FieldError, Invalid, TooLarge
from app.kit.storage import Storage

INDEX = "index"


@dataclass(frozen=True)
class Limits:
    """The most that a dataset may hold; `records` bounds its blank lines as well."""

    record_bytes: int
    records: int


@dataclass(frozen=True)
class Stored:
    """A dataset whose blobs are in place. `bytes` and `sha256` are those of the JSON Lines, unpacked.

    `duplicates`: records that are the same as an earlier one.
    """

    dataset_id: str
    records: int
    duplicates: int
    bytes: int
    sha256: str
    blob_key: str
    digests_key: str
    wrapped: WrappedKey


def context(tenant_id: str, dataset_id: str, part: str) -> str:
    """The associated data that binds ciphertext to its place."""
    return f"{tenant_id}/{dataset_id}/{part}"


def salt_of(tenant_id: str, pepper: bytes) -> bytes:
    """The key of a tenant's record digests: equal records of two tenants have unequal digests."""
    return hashlib.blake2b(f"records/{tenant_id}".encode(), key=pepper[:64], digest_size=32).digest()


def salted_digest(sha256: str, salt: bytes) -> str:
    """Names a dataset's bytes for as long as the audit chain lasts.

    The plain sha256 of a short dataset is found by trying what it may hold; this one says nothing without the salt.
    """
    return hmac.digest(salt, bytes.fromhex(sha256), hashlib.sha256).hex()


class Intake:
    """A context manager around one upload. Blobs appear when the block ends without an exception.

    It holds a line, a chunk of ciphertext and some 100,000 digests in memory, however large the dataset is.
    """

    def __init__(self, storage: Storage, ring: KeyRing, tenant_id: str, salt: bytes, limits: Limits) -> None:
        self.dataset_id = new_id("ds")
        self._folder = f"tenants/{tenant_id}/datasets/{self.dataset_id}"
        self._keys = f"{self._folder}/records", f"{self._folder}/{INDEX}"
        self._storage = storage
        self._salt = salt
        self._limits = limits
        self._data_key = new_data_key()
        self._wrapped = ring.wrap(self._data_key, context(tenant_id, self.dataset_id, "key"))
        self._contexts = [context(tenant_id, self.dataset_id, part) for part in ("records", INDEX)]
        self._hash = hashlib.sha256()
        self._bytes = self._lines = self._records = 0
        self._rest = bytearray()
        self._errors: list[FieldError] = []
        self._stack = ExitStack()

    def __enter__(self) -> Intake:
        sinks = [self._stack.enter_context(self._storage.create(key)) for key in self._keys]
        self._blob, self._sealed_index = (
            EncryptingWriter(sink, self._data_key, bound) for sink, bound in zip(sinks, self._contexts, strict=True)
        )
        self._index = IndexBuilder(self._storage.scratch)
        self._stack.callback(self._index.close)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)
        if kind is not None:
            with suppress(OSError):
                self._storage.delete_all(self._folder)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body.

        Raises:
            TooLarge: a line or the number of lines exceeds its limit.
            Invalid: twenty lines were no records.
        """
        self._hash.update(data)
        self._bytes += len(data)
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(bytes(line))
        self._rest = bytearray(rest)
        if len(self._rest) > self._limits.record_bytes:
            self._too_long(self._lines + 1)

    def finish(self) -> Stored:
        """Close the blobs.

        Raises:
            Invalid: some lines were no records (the first 20 are named by number), or there were none at all.
        """
        if self._rest:
            self._line(bytes(self._rest))
        if self._errors:
            raise self._refused(f"{len(self._errors)} of {self._lines} lines")
        if not self._records:
            raise Invalid("the dataset is empty: send one JSON record per line")
        for entries in self._index.entries():
            self._sealed_index.write(entries)
        self._blob.close()
        self._sealed_index.close()
        # Here, and not when the block ends: making sure that the bytes are on disk takes time.
        self._stack.close()
        return Stored(
            self.dataset_id, self._records, self._index.duplicates, self._bytes, self._hash.hexdigest(), *self._keys,
            self._wrapped,
        )  # fmt: skip

    def add(self, record: Record, line: bytes) -> None:
        """Store one record, whose line ends with a newline."""
        self._records += 1
        if self._records > self._limits.records:
            raise TooLarge(f"more than {self._limits.records} records; split the dataset")
        self._blob.write(line)
        self._index.add(digest(record, self._salt), self._lines)

    def _line(self, line: bytes) -> None:
        self._lines += 1
        if len(line) > self._limits.record_bytes:
            self._too_long(self._lines)
        if not line.strip():
            if self._lines - self._records > self._limits.records:
                raise TooLarge(f"more than {self._limits.records} blank lines")
            return
        try:
            self.add(parse_record(line), line.rstrip(b"\r") + b"\n")
        except RecordError as error:
            self._errors.append(FieldError(f"/lines/{self._lines}", f"line {self._lines}: {error}"))
            if len(self._errors) == MAX_ERRORS:
                # How many more there are is not known: nobody wants to send the rest of such a file.
                raise self._refused(f"at least {MAX_ERRORS} of the first {self._lines} lines") from None

    def _refused(self, which: str) -> Invalid:
        return Invalid(f"{which} cannot be taken; {self._errors[0].detail}", errors=self._errors)

    def _too_long(self, line: int) -> NoReturn:
        reason = f"line {line} exceeds {self._limits.record_bytes} bytes"
        raise TooLarge(reason, errors=[FieldError(f"/lines/{line}", reason)])
