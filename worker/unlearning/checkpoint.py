"""A run that was interrupted, as bytes: enough to go on to the very bytes that it would have ended with.

Layout: magic, SHA-256 of the rest, then a safetensors file whose metadata holds the scalars as JSON. No pickle.
What a checkpoint holds is derived from the records, so it is to be kept as they are: encrypted, and no longer.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

MAGIC = b"lethe-checkpoint-1\n"
_DIGEST = 32


class CheckpointError(ValueError):
    """The bytes are no checkpoint, are torn, or belong to another run."""


@dataclass(frozen=True)
class Checkpoint:
    """The state between two steps.

    Attributes:
        fingerprint: of everything that the run's course depends on; another run's checkpoint is refused by it.
        tensors: float32 vectors and the state of the random number generator, on the CPU.
        scalars: step, moments' age, probes and whatever else is no tensor; plain JSON values.
    """

    fingerprint: str
    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """The checkpoint as a file's content."""
        head = {"fingerprint": self.fingerprint, "scalars": json.dumps(self.scalars)}
        body = save({name: tensor.contiguous() for name, tensor in self.tensors.items()}, metadata=head)
        return MAGIC + hashlib.sha256(body).digest() + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Checkpoint:
        """Read what `to_bytes` wrote.

        Raises:
            CheckpointError: the bytes are something else, cut off, or changed.
        """
        body = data[len(MAGIC) + _DIGEST :]
        if not data.startswith(MAGIC) or hashlib.sha256(body).digest() != data[len(MAGIC) : len(MAGIC) + _DIGEST]:
            raise CheckpointError("not a checkpoint, or a torn one")
        try:
            size = int.from_bytes(body[:8], "little")
            metadata = json.loads(body[8 : 8 + size])["__metadata__"]
            return cls(metadata["fingerprint"], load(body), json.loads(metadata["scalars"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError("a checkpoint of another version") from error

    def write(self, path: Path) -> None:
        """Write to a file, which holds the old content or the new one at any moment, whatever fails."""
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.to_bytes())
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read a file. Raises CheckpointError, or OSError."""
        return cls.from_bytes(path.read_bytes())
