"""Identifiers that tell what they name and nothing else."""

from __future__ import annotations

import secrets


def new_id(prefix: str) -> str:
    """A random identifier such as ``job_3f9c...`` with 96 random bits."""
    return f"{prefix}_{secrets.token_hex(12)}"
