"""Reading the header."""

from __future__ import annotations

import re

from app.kit.problems import invalid_field

POINTER = "/header/Idempotency-Key"
MAX_LENGTH = 256
# A string of structured fields (RFC 8941, 3.3.3): printable ASCII in quotes, quote and backslash escaped.
_QUOTED = re.compile(r'"((?:[\x20-\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"')
_ESCAPED = re.compile(r'\\(["\\])')


def read_key(header: str) -> str:
    """The key in a header: a string as the draft has it, or the bare text that many clients send.

    Raises:
        Invalid: the header is neither, or the key is empty or longer than `MAX_LENGTH`.
    """
    text = header.strip()
    key = text
    if text.startswith('"'):
        quoted = _QUOTED.fullmatch(text)
        if quoted is None:
            raise invalid_field(POINTER, "opens with a quote and is no structured-field string (RFC 8941)")
        key = _ESCAPED.sub(r"\1", quoted[1])
    if not 1 <= len(key) <= MAX_LENGTH or not key.isprintable():
        raise invalid_field(POINTER, f"must be 1 to {MAX_LENGTH} printable characters")
    return key
