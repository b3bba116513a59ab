"""What a caller is told of an error that a run may meet. Messages name no folder and quote no record."""

from __future__ import annotations

from worker.errors import JobError
from worker.unlearning.encoding import EncodingError
from worker.unlearning.loop import UnlearningError
from worker.unlearning.lora import AdapterError
from worker.unlearning.models import LibraryMissing, ModelError
from worker.unlearning.step import is_out_of_memory

OUT_OF_MEMORY = (
    "the worker has too little memory even for single sequences (micro_batch_size is halved by itself); set "
    "gradient_checkpointing, lower max_length, or run workers with LETHE_FOUR_BIT=true"
)
_CODES = {AdapterError: "adapter_unusable", EncodingError: "record_unusable", UnlearningError: "unlearning_failed"}


def explain(error: Exception) -> JobError | None:
    """The job's error for an expected one; None for any other."""
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        return JobError("out_of_memory", OUT_OF_MEMORY)
    if isinstance(error, LibraryMissing):
        return JobError("library_missing", str(error))
    if isinstance(error, ModelError):
        # Its text may name a folder of this machine.
        return JobError("model_unusable", "the base model cannot be loaded on the worker")
    code = next((code for kind, code in _CODES.items() if isinstance(error, kind)), None)
    return JobError(code, str(error)) if code else None
