"""Which columns hold secrets that a key-encryption key wraps. Each table says so itself, in its column's `info`.

What is found here is what `rewrap` and `scrub` act upon, so that no table is forgotten: a column of bytes that says
nothing fails a test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, MetaData, RowMapping, Table

_INFO, _SEALED = "wrapped", "sealed"
Context = Callable[[RowMapping], str]


@dataclass(frozen=True)
class WrappedColumn:
    """A column with wrapped secrets, None where the secret is destroyed.

    Attributes:
        key_id: the column that names the key-encryption key.
        context: the associated data with which a row's secret was wrapped.
    """

    table: Table
    wrapped: Column[Any]
    key_id: Column[Any]
    primary_key: Column[Any]
    tenant_id: Column[Any]
    context: Context


def wrapped_under(key_id: str, context: Context) -> dict[str, Any]:
    """The `info` of a column with wrapped secrets; `key_id` is the name of the column beside it."""
    return {_INFO: (key_id, context)}


def sealed_elsewhere() -> dict[str, Any]:
    """The `info` of a column with keys that another table's wrapped key seals: scrubbed, never rewrapped."""
    return {_SEALED: True}


def sealed_columns(metadata: MetaData) -> Iterator[Column[Any]]:
    """Every such column, in the order of the tables' names."""
    for table in sorted(metadata.tables.values(), key=lambda one: one.name):
        yield from (column for column in table.columns if _SEALED in column.info)


def wrapped_columns(metadata: MetaData) -> Iterator[WrappedColumn]:
    """Every such column, in the order of the tables' names."""
    for table in sorted(metadata.tables.values(), key=lambda one: one.name):
        for column in table.columns:
            if _INFO in column.info:
                key_id, context = column.info[_INFO]
                (primary_key,) = table.primary_key.columns
                yield WrappedColumn(
                    table, column, table.columns[key_id], primary_key, table.columns["tenant_id"], context
                )
