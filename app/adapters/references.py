"""What stands where a version is named: its number, "head", or an alias."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import Path

HEAD = "head"
# Begins with a letter, so that no alias looks like a number; "head" has a meaning of its own.
_ALIAS = re.compile(r"[a-z][a-z0-9._-]{0,63}")

VersionReference = Annotated[str, Path(description="Number of a version, `head`, or an alias.")]
VersionNumber = Annotated[str, Path(description="Number of a version.")]


def number_of(reference: str) -> int | None:
    """The number that is meant; None for what is no number."""
    return int(reference) if reference.isascii() and reference.isdigit() and len(reference) < 10 else None


def is_alias(reference: str) -> bool:
    """Whether this could be an alias."""
    return reference != HEAD and _ALIAS.fullmatch(reference) is not None
