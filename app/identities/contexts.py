"""What ciphertext of an index is bound to."""

from __future__ import annotations


def context(tenant_id: str, index_id: str, part: str) -> str:
    """The associated data that binds ciphertext to its place."""
    return f"{tenant_id}/{index_id}/{part}"
