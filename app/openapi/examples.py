"""Makes an example of a schema: one value that fits it, the same every time, of words that a reader expects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.openapi.words import ANSWERS, IDS, VALUES

Schema = Mapping[str, Any]
_PREFIX = "#/components/schemas/"


class Examples:
    """Examples of the schemas of one document.

    Args:
        schemas: its ``components.schemas``.
    """

    def __init__(self, schemas: Mapping[str, Schema]) -> None:
        self._schemas = schemas

    def of(self, schema: Schema, name: str = "") -> Any:  # noqa: ANN401 - any JSON value
        """An example; `name` is that of the field that holds it."""
        if "$ref" in schema:
            component = schema["$ref"].removeprefix(_PREFIX)
            return self._named(component, name)
        for key in ("const", "example"):
            if key in schema:
                return schema[key]
        for key in ("examples", "enum"):
            if key in schema:
                return self._preferred(schema[key], name)
        if "anyOf" in schema or "oneOf" in schema:
            return self._choice(schema, name)
        if schema.get("allOf"):
            return self.of(schema["allOf"][0], name)
        return self._typed(schema, name)

    def _named(self, component: str, name: str) -> Any:  # noqa: ANN401 - any JSON value
        made = self.of(self._schemas[component], name)
        return made | ANSWERS.get(component, {}) if isinstance(made, dict) else made

    def _preferred(self, values: list[Any], name: str) -> Any:  # noqa: ANN401 - any JSON value
        return VALUES[name] if VALUES.get(name) in values else values[0]

    def _choice(self, schema: Schema, name: str) -> Any:  # noqa: ANN401 - any JSON value
        if "default" in schema:
            return schema["default"]
        choices = schema.get("anyOf") or schema["oneOf"]
        # What may be null is null where nothing better is known: fields of other states then do not mix.
        nothing = any(choice.get("type") == "null" for choice in choices)
        if nothing and name not in VALUES:
            return None
        return self.of(choices[0], name)

    def _typed(self, schema: Schema, name: str) -> Any:  # noqa: ANN401 - any JSON value
        kind = schema.get("type")
        if kind == "object" or "properties" in schema:
            return self._object(schema)
        if "default" in schema and name not in VALUES:
            return schema["default"]
        if kind == "array":
            known = VALUES.get(name)
            return known if isinstance(known, list) else [self.of(schema.get("items", {}), "")]
        if kind in ("integer", "number"):
            return self._number(schema, name)
        if kind == "boolean":
            return schema.get("default", True)
        return self._text(schema, name) if kind == "string" else {}

    def _object(self, schema: Schema) -> dict[str, Any]:
        properties: Mapping[str, Schema] = schema.get("properties", {})
        made = {name: self.of(inner, name) for name, inner in properties.items()}
        kind = made.get("object")
        if "id" in made and kind in IDS and isinstance(made["id"], str):
            made["id"] = IDS[kind]
        if isinstance(made.get("data"), list) and "next_cursor" in made:
            made |= {"has_more": False, "next_cursor": None}
        return made

    def _number(self, schema: Schema, name: str) -> int | float:
        known = VALUES.get(name)
        lowest = schema.get("minimum", schema.get("exclusiveMinimum", 0) + ("exclusiveMinimum" in schema))
        return known if isinstance(known, int | float) else lowest

    def _text(self, schema: Schema, name: str) -> str:
        known = VALUES.get(name)
        if isinstance(known, str):
            return known
        if schema.get("format") == "date-time":
            return "2026-01-31T12:00:00Z"
        if schema.get("format") == "uri":
            return "https://dsr.example.com/lethe"
        if name.endswith(("sha256", "hash", "digest")):
            return str(VALUES["sha256"])
        return name.replace("_", "-") or "text"
