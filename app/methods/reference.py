"""Writes docs/losses.md from the schemas: ``make docs``, or ``python -m app.methods.reference > docs/losses.md``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Set
from typing import Any

from pydantic import BaseModel

from app.methods import (
    FORGET_LOSSES,
    METHOD_REQUESTS,
    RETAIN_LOSSES,
    SCHEDULES,
    STOP_RULES,
    UNLEARNING_REQUESTS,
    describe,
)

_HEAD = """\
# Methods, losses, schedules and stop rules: every knob

This page is generated from `app/methods/` by `make docs`; a test fails when it is out of date. `GET /methods` answers
the same as JSON, with a JSON Schema of each. What the methods compute is in [method.md](method.md).

A job's `method` names a method by its `type`, and within it a `forget_loss`, a `retain_loss`, a `schedule` and a
`stop` rule by theirs. Whatever is left out has its default: `{"forget_loss": {"type": "simnpo"}}` is BLUR with
another forget loss.
"""
_SHARED = """\
## Knobs of every method

Of every method that unlearns. `retrain` has those two that change memory alone and takes the rest from the adapter's
recipe ([adapters.md](adapters.md#the-training-set)); `auto` has none.
"""
_UNIONS = {
    "forget_loss": ("a [forget loss](#forget-losses)", FORGET_LOSSES),
    "retain_loss": ("a [retain loss](#retain-losses)", RETAIN_LOSSES),
    "schedule": ("a [schedule](#schedules)", SCHEDULES),
    "stop": ("a [stop rule](#stop-rules)", STOP_RULES),
}


def reference() -> str:
    """The page."""
    unlearning = list(UNLEARNING_REQUESTS.values())
    shared = set.intersection(*(set(kind.model_fields) for kind in unlearning)) - {"type"}
    first = unlearning[0]
    parts = (
        _HEAD,
        *_section("Methods", METHOD_REQUESTS, shared),
        _SHARED,
        *_table(first, first.model_fields.keys() - shared),
        *_section("Forget losses", FORGET_LOSSES),
        *_section("Retain losses", RETAIN_LOSSES),
        *_section("Schedules", SCHEDULES),
        *_section("Stop rules", STOP_RULES),
    )
    return "\n".join(parts)


def _section(title: str, members: Mapping[str, type[BaseModel]], hidden: Set[str] = frozenset()) -> Iterator[str]:
    yield f"## {title}\n"
    for name, kind in members.items():
        yield f"### `{name}`\n\n{describe(kind)}\n"
        yield from _table(kind, hidden)


def _table(kind: type[BaseModel], hidden: Set[str]) -> Iterator[str]:
    """One row per knob; nothing where there is none."""
    schema = kind.model_json_schema()
    names = [name for name in kind.model_fields if name not in hidden | {"type"}]
    if names:
        rows = [_row(name, schema["properties"][name]) for name in names]
        yield "\n".join(("| knob | default | range | meaning |", "|---|---|---|---|", *rows, ""))


def _row(name: str, schema: Mapping[str, Any]) -> str:
    words, members = _UNIONS.get(name, ("", {}))
    default = schema["default"]
    if members:
        default = {"type": default["type"]}
    cells = (f"`{name}`", f"`{json.dumps(default)}`", words or _range(schema), schema["description"])
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _range(schema: Mapping[str, Any]) -> str:
    """What a knob may be, in words."""
    if "anyOf" in schema:
        return " or ".join(_range(choice) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema.get("enum", [schema.get("const")]))
    if schema["type"] in ("boolean", "null"):
        return {"boolean": "`true`, `false`", "null": "`null`"}[schema["type"]]
    low = f"above {schema['exclusiveMinimum']:g}" if "exclusiveMinimum" in schema else f"{schema['minimum']:g}"
    return f"{low} to {schema['maximum']:,.9g}"


if __name__ == "__main__":
    sys.stdout.write(reference())
