"""Having a result judged by a process of its own, which sees nothing but the packaged files and the records.

A gate inside the process that trained could be fooled by what training left in memory. A fresh process loads the
released bytes as anybody would. It gets no address, no key and no setting of the service: records come to it through
a pipe and never lie on a disk in the clear.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from pydantic import TypeAdapter

from app.methods import Method, Policy
from worker.errors import JobError

if TYPE_CHECKING:
    from worker.evaluation.judgement import Judgement

SECONDS_BETWEEN_LOOKS = 0.1
NEEDED = (
    "CUBLAS_", "CUDA_", "HF_", "HOME", "KMP_", "LANG", "LC_", "LD_LIBRARY_PATH", "MKL_", "NCCL_", "NVIDIA_", "OMP_",
    "PATH", "PYTHON", "TMPDIR", "TOKENIZERS_", "TORCH", "TRANSFORMERS_", "TZ", "VIRTUAL_ENV",
)  # fmt: skip
"""Names of the environment that a judge is given begin so: where programs and libraries are, and how they compute."""
_KILLED = -9


@dataclass(frozen=True)
class Request:
    """What is to be judged, and how.

    Attributes:
        base: folder of the base model.
        adapters: folders by name: "source", "result", and "control" where there is one.
        records: by the name of their set, sampled.
        policy, method, seed: of the run.
        device, threads, four_bit, spread: as the worker computes.
    """

    base: Path
    adapters: Mapping[str, Path]
    records: Mapping[str, list[dict[str, Any]]]
    policy: Policy
    method: Method
    seed: int
    device: str
    threads: int
    four_bit: bool
    spread: bool


class Judge:
    """A process that judges one result. Starting it early lets it load its libraries while training goes on.

    A context manager: the process is gone when the block ends, whatever happened.
    """

    def __init__(self) -> None:
        # What is not there cannot leak. Its stderr may quote a record, so that nobody reads it.
        environment = {name: value for name, value in os.environ.items() if name.startswith(NEEDED)}
        environment.pop("HF_TOKEN", None)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "worker.judge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # a signal to the worker's group is the worker's to handle
        )

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                _close(pipe)

    def judge(self, request: Request, check: Callable[[], None], on_probe: Callable[[str], None]) -> Judgement:
        """Have a result judged.

        Args:
            request: what is to be judged.
            check: called again and again while the process works; what it raises ends the process.
            on_probe: called with each probe's name as it begins.

        Raises:
            JobError: the models cannot be judged, or the process broke.
        """
        lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        data = _adapter(Request).dump_json(request)
        for work in (lambda: self._send(data), lambda: self._receive(lines)):
            threading.Thread(target=work, daemon=True).start()
        while True:
            check()
            try:
                line = lines.get(timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                continue
            if line is None:
                check()  # whoever ended it may have told this process to stop, too
                raise self._broken()
            message = json.loads(line)
            if "probe" in message:
                on_probe(message["probe"])
            elif "error" in message:
                raise JobError(message["error"]["code"], message["error"]["message"])
            else:
                return _read(message["judgement"])

    def _send(self, data: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        try:
            self._process.stdin.write(data)
        except BrokenPipeError:
            return  # it broke: the reader tells
        finally:
            _close(self._process.stdin)

    def _receive(self, lines: queue.SimpleQueue[bytes | None]) -> None:
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        with suppress(OSError, ValueError):  # closed while it was read, by the end of the block
            for line in self._process.stdout:
                lines.put(line)
        lines.put(None)

    def _broken(self) -> JobError:
        status = self._process.wait()
        if status == _KILLED:
            return JobError(
                "out_of_memory", "the process that judges the result was killed; most often memory ran out"
            )
        return JobError("evaluation_failed", f"the process that judges the result ended with status {status}")


def _close(pipe: IO[bytes]) -> None:
    with suppress(OSError):  # what was not written yet has no reader any more
        pipe.close()


def _read(data: object) -> Judgement:
    from worker.evaluation.judgement import Judgement

    judgement: Judgement = _adapter(Judgement).validate_python(data)
    return judgement


@lru_cache(maxsize=4)
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
