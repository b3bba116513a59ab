"""Having a result judged by a process of its own, which sees nothing but the packaged files and the records.

A gate inside the process that trained could be fooled by what training left in memory. A fresh process loads the
released bytes as anybody would. It gets no address, no key and no setting of the service: records come to it through
a pipe and never lie on a disk in the clear.
"""

from __future__ import annotations

import json
import math
import os
import queue
import subprocess
import sys
import threading
import time
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
        base_knows: the base model itself knows the records.
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
    base_knows: bool = False


class Judge:
    """A process that judges one result. It loads its libraries at once, and holds nothing else until it is asked.

    A context manager: the process is gone when the block ends, whatever happened.
    """

    def __init__(self) -> None:
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._asked = False
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
        # By a thread of its own: the process reads only once its libraries are loaded.
        threading.Thread(target=self._send, daemon=True).start()

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._outgoing.put(None)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                _close(pipe)

    def prepare(self, request: Request) -> None:
        """Have everything measured that does not need the result, whose files need not be there yet.

        Beside training this takes memory for a second base model, and as many threads.
        """
        self._outgoing.put(_adapter(Request).dump_json(request) + b"\n")
        self._asked = True

    def judge(
        self,
        request: Request,
        check: Callable[[], None],
        on_probe: Callable[[str], None],
        patience: float = math.inf,
    ) -> Judgement:
        """Have a result judged, whose files are there now.

        Args:
            request: what is to be judged; the one that `prepare` was given, if it was called.
            check: called again and again while the process works; what it raises ends the process.
            on_probe: called with each probe's name as it begins.
            patience: seconds that a single probe may take.

        Raises:
            JobError: the models cannot be judged, or the process broke or hangs.
        """
        if not self._asked:
            self.prepare(request)
        self._outgoing.put(b"\n")
        lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(target=self._receive, args=(lines,), daemon=True).start()
        heard = time.monotonic()
        while True:
            check()
            try:
                line = lines.get(timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                if time.monotonic() - heard > patience:
                    raise JobError(
                        "evaluation_timeout", f"a probe took longer than {patience:g} s (LETHE_PROBE_SECONDS)"
                    ) from None
                continue
            heard = time.monotonic()
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

    def _send(self) -> None:
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        with suppress(OSError, ValueError):  # it broke, which the reader tells, or the block has ended
            while (data := self._outgoing.get()) is not None:
                self._process.stdin.write(data)
                self._process.stdin.flush()

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
