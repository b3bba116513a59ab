"""A base model's tokenizer as it lies in its directory.

What was read is kept for as long as the files say the same of themselves: whoever puts another tokenizer there is
counted by that one from then on.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from app.datasets.tokens import TokenCounter

LOADED = 4  # tokenizers that a process holds; large ones take a hundred megabytes
_TOKENIZER, _CONFIG, _TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
# Of each file its time and size; None where it is not there.
_State = tuple[tuple[int, int] | None, ...]


def counter_of(directory: Path) -> TokenCounter | None:
    """The counter of a base model's directory; None where it holds no tokenizer.json that can be read."""
    try:
        return _load(directory, _state(directory, _TOKENIZER, _CONFIG, _TEMPLATE))
    except Exception:  # the library raises bare exceptions of its own, and a count is no reason to refuse a job
        return None


def fingerprint_of(directory: Path) -> str | None:
    """Names all that a count depends on but the model's context: equal ones count alike. None as `counter_of`."""
    try:
        return _fingerprint(directory, _state(directory, _TOKENIZER, _CONFIG, _TEMPLATE))
    except OSError:
        return None


def context_length(directory: Path) -> int | None:
    """Longest sequence that a base model was built for, by its config.json; None where it names none."""
    return _context_length(directory, _state(directory, "config.json"))


def _state(directory: Path, *names: str) -> _State:
    found: list[tuple[int, int] | None] = []
    for name in names:
        try:
            stat = (directory / name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((stat.st_mtime_ns, stat.st_size))
    return tuple(found)


@lru_cache(maxsize=256)
def _context_length(directory: Path, _now: _State) -> int | None:
    try:
        config = json.loads((directory / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    length = config.get("text_config", config).get("max_position_embeddings")
    return length if isinstance(length, int) and length > 0 else None


@lru_cache(maxsize=256)
def _fingerprint(directory: Path, now: _State) -> str:
    whole = hashlib.sha256()
    for name, there in zip((_TOKENIZER, _CONFIG, _TEMPLATE), now, strict=True):
        if there or name == _TOKENIZER:
            with (directory / name).open("rb") as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        else:
            whole.update(bytes(32))
    return whole.hexdigest()


@lru_cache(maxsize=LOADED)
def _load(directory: Path, _now: _State) -> TokenCounter:
    tokenizer = Tokenizer.from_file(str(directory / _TOKENIZER))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = _read(directory / _CONFIG)
    special = {name: _text_of(token) for name, token in config.items() if name.endswith("_token")}
    template = directory / _TEMPLATE
    written = template.read_text() if template.is_file() else _template_of(config.get("chat_template"))
    known = {name: text for name, text in special.items() if text is not None}
    return TokenCounter(tokenizer, known, written)


def _read(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_bytes()) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _text_of(token: object) -> str | None:
    """A special token is written as a string, or as an object that holds it."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _template_of(value: object) -> str | None:
    """A tokenizer has one template, or several with names."""
    if isinstance(value, list):
        value = next((each.get("template") for each in value if each.get("name") == "default"), None)
    return value if isinstance(value, str) else None
