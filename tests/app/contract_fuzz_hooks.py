"""How schemathesis writes bodies of JSON Lines, which it does not know. Loaded by its own process."""

from __future__ import annotations

import json
from typing import Any

import schemathesis


@schemathesis.serializer("application/jsonl", "application/x-ndjson", "application/x-jsonlines")
def json_lines(_context: schemathesis.SerializationContext, value: Any) -> bytes:
    """A text as it is, since the document describes the body as one; anything else as a line of JSON."""
    if isinstance(value, bytes):
        return value
    return (value if isinstance(value, str) else json.dumps(value)).encode(errors="surrogatepass")
