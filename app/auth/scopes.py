"""What a key may be allowed to do."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

Scope = Literal["datasets:write", "jobs:write", "jobs:read", "adapters:read", "adapters:write", "audit:read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
ADMIN: Scope = "admin"


def allows(granted: Collection[str], accepted: Collection[str]) -> bool:
    """Whether a caller with the scopes `granted` may make a call that takes any of `accepted`."""
    return ADMIN in granted or any(scope in granted for scope in accepted)
