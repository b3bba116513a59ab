"""Lists by opaque cursor, newest first, stable while rows are added."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Generic, Literal, TypeVar, TypeVarTuple

from fastapi import Query
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Select, tuple_

from app.kit.problems import invalid_field

_CHECKSUM = 8  # bytes

Row = TypeVar("Row")
Item = TypeVar("Item")
Columns = TypeVarTuple("Columns")

Limit = Annotated[int, Query(ge=1, le=100, description="Most items in one answer.")]
Cursor = Annotated[str | None, Query(max_length=512, description="next_cursor of the answer before.")]


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    next_cursor: str | None


def encode_cursor(moment: datetime, row_id: str, order: str = "created_at") -> str:
    """An opaque place in a list that goes by `order`."""
    raw = json.dumps([order, moment.isoformat(), row_id]).encode()
    return base64.urlsafe_b64encode(_checksum(raw) + raw).decode().rstrip("=")


def decode_cursor(cursor: str, order: str = "created_at") -> tuple[datetime, str]:
    """The place that a cursor names.

    Raises:
        Invalid: the cursor is not one of ours, was changed, or is of a list in another order.
    """
    try:
        padded = cursor.encode() + b"=" * (-len(cursor) % 4)
        named, moment_text, row_id = json.loads(base64.urlsafe_b64decode(padded)[_CHECKSUM:])
        moment = datetime.fromisoformat(moment_text)
        # Written anew, since base64 has several texts for the same bytes; the checksum is compared with it.
        if named != order or encode_cursor(moment, row_id, order) != cursor:
            raise ValueError
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise invalid_field("/query/cursor", "not a cursor of this list; leave it out to start over") from None
    return moment, row_id


def _checksum(raw: bytes) -> bytes:
    # Tells a cursor that was changed. It keeps nothing secret: every list looks at its own tenant's rows alone.
    return hashlib.blake2b(raw, digest_size=_CHECKSUM, person=b"cursor").digest()


def newest_first(
    statement: Select[*Columns],
    created_at: ColumnElement[datetime] | Any,  # noqa: ANN401 - an ORM attribute
    row_id: ColumnElement[str] | Any,  # noqa: ANN401 - an ORM attribute
    limit: int,
    cursor: str | None,
) -> Select[*Columns]:
    """Order a statement and cut it to one page plus one row, which tells whether more follow."""
    if cursor is not None:
        statement = statement.where(tuple_(created_at, row_id) < tuple_(*decode_cursor(cursor)))
    return statement.order_by(created_at.desc(), row_id.desc()).limit(limit + 1)


def split_page(rows: Sequence[Row], limit: int) -> tuple[list[Row], bool]:
    """The rows of this page, and whether more follow."""
    return list(rows[:limit]), len(rows) > limit
