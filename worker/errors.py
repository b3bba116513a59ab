"""How a run ends that cannot succeed."""

from __future__ import annotations


class JobError(Exception):
    """The run cannot succeed. The message is for the caller and quotes no record."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
