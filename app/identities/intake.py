"""Takes an index in as it arrives: checked line by line, sealed at once, nothing kept when a line is bad."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from app.datasets.intake import Limits
from app.datasets.records import RecordError, to_line, validate_record
from app.identities.contexts import context
from app.identities.fingerprints import BYTES, fingerprints
from app.identities.schemas import IndexLine
from app.kit.crypto import KeyRing, WrappedKey, new_data_key, seal
from app.kit.ids import new_id
from app.kit.problems import MAX_ERRORS, FieldError, Invalid, TooLarge, invalid_fields
from app.kit.storage import Storage

_HINT = 'a line is {"identities": [{"identity_type", "identity_value", "identity_format"?}], "records": [...]}'
_ROW = struct.Struct(">QQIHH")  # offset, size, records, number of fingerprints, length of the sealed key


class LineError(Exception):
    """A line that does not belong into an index. The message says why and quotes nothing of it."""


@dataclass(frozen=True)
class Entry:
    """A sealed line: where it lies, how it is found, and the key that opens it, sealed under the index's."""

    number: int
    offset: int
    size: int
    records: int
    fingerprints: list[bytes]
    sealed_key: bytes


@dataclass(frozen=True)
class StoredIndex:
    """An index whose blob is in place."""

    index_id: str
    entries: int
    records: int
    bytes: int
    blob_key: str
    wrapped: WrappedKey


class IndexIntake:
    """A context manager around one upload. The blob appears when `finish` is called; `entries` is read after that."""

    def __init__(self, storage: Storage, ring: KeyRing, tenant_id: str, secret: bytes, limits: Limits) -> None:
        self.index_id = new_id("idx")
        self.blob_key = f"tenants/{tenant_id}/identity-indexes/{self.index_id}"
        self._tenant_id = tenant_id
        self._storage = storage
        self._secret = secret
        self._limits = limits
        self._data_key = new_data_key()
        self._wrapped = ring.wrap(self._data_key, context(tenant_id, self.index_id, "key"))
        self._lines = self._count = self._records = self._bytes = self._offset = 0
        self._rest = bytearray()
        self._errors: list[FieldError] = []
        self._stack = ExitStack()

    def __enter__(self) -> IndexIntake:
        # The rows of a large index fit in no memory, and a transaction that lasts as long as an upload is none.
        # They hold digests and sealed keys: what the table holds afterwards.
        self._rows = self._storage.scratch()
        self._blobs = ExitStack()
        self._blob = self._blobs.enter_context(self._storage.create(self.blob_key))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows.close()
        self._blobs.__exit__(kind, error, trace)

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body. Raises TooLarge, or Invalid once 20 lines are bad."""
        self._bytes += len(data)
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(bytes(line))
        self._rest = bytearray(rest)
        if len(self._rest) > self._limits.record_bytes:
            self._too_long(self._lines + 1)

    def finish(self) -> StoredIndex:
        """Close the blob.

        Raises:
            Invalid: some lines were bad (the first 20 are named by number), or there were none at all.
        """
        self._line(bytes(self._rest))
        if self._errors:
            raise invalid_fields(self._errors)
        if not self._count:
            raise Invalid(f"the index is empty; {_HINT}")
        self._blobs.close()
        return StoredIndex(self.index_id, self._count, self._records, self._bytes, self.blob_key, self._wrapped)

    def batches(self, size: int) -> Iterator[list[Entry]]:
        """The sealed lines, in order, so many at a time."""
        self._rows.seek(0)
        batch: list[Entry] = []
        for number in range(1, self._count + 1):
            batch.append(self._read_row(number))
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _line(self, line: bytes) -> None:
        self._lines += 1
        if len(line) > self._limits.record_bytes:
            self._too_long(self._lines)
        if not line.strip():
            if self._lines - self._count > self._limits.records:
                raise TooLarge(f"more than {self._limits.records} blank lines")
            return
        try:
            found, records = parse_line(line, self._secret)
        except LineError as error:
            self._errors.append(FieldError(f"/lines/{self._lines}", f"line {self._lines}: {error}"))
            if len(self._errors) == MAX_ERRORS:
                raise invalid_fields(self._errors) from None
            return
        self._records += len(records)
        if self._records > self._limits.records:
            raise TooLarge(f"more than {self._limits.records} records; split the index")
        self._add(found, records)

    def _add(self, found: set[bytes], records: list[bytes]) -> None:
        self._count += 1
        key = new_data_key()
        place = context(self._tenant_id, self.index_id, f"entry/{self._count}")
        sealed = seal(key, b"".join(records), place)
        sealed_key = seal(self._data_key, key, f"{place}/key")
        self._blob.write(sealed)
        self._rows.write(_ROW.pack(self._offset, len(sealed), len(records), len(found), len(sealed_key)))
        self._rows.write(sealed_key + b"".join(sorted(found)))
        self._offset += len(sealed)

    def _read_row(self, number: int) -> Entry:
        offset, size, records, found, key_bytes = _ROW.unpack(self._rows.read(_ROW.size))
        sealed_key = self._rows.read(key_bytes)
        return Entry(number, offset, size, records, [self._rows.read(BYTES) for _ in range(found)], sealed_key)

    def _too_long(self, number: int) -> None:
        raise TooLarge(
            f"line {number} exceeds {self._limits.record_bytes} bytes; put the person's records on several lines"
        )


def parse_line(line: bytes, secret: bytes) -> tuple[set[bytes], list[bytes]]:
    """The fingerprints of a line's identities, and its records as they are stored.

    Raises:
        LineError: the line is none.
    """
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise LineError("not valid JSON") from None
    try:
        read = IndexLine.model_validate(value)
    except ValidationError as error:
        raise LineError(_explain(error)) from None
    found = set().union(*(fingerprints(identity, secret) for identity in read.identities))
    try:
        return found, [to_line(validate_record(record)) for record in read.records]
    except RecordError as error:
        raise LineError(str(error)) from None


def _explain(error: ValidationError) -> str:
    reasons = []
    for item in error.errors(include_input=False, include_url=False, include_context=False)[:3]:
        if item["type"] == "extra_forbidden":
            # A name that we do not know may itself be personal data.
            reasons.append(f"unknown field; {_HINT}")
        else:
            place = ".".join(str(part)[:32] for part in item["loc"])
            reasons.append(f"{place}: {item['msg']}" if place else f"not a JSON object; {_HINT}")
    return "; ".join(dict.fromkeys(reasons))
