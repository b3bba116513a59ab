"""The process that judges a result: ``python -m worker.judge``, started by `worker.judging`.

One request on its input, then one line when the result is there; lines of JSON on its output. It is started before
there is a request, and loads its libraries meanwhile. What does not need the result is measured while that is waited
for.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

from pydantic import TypeAdapter

from app.kit.logs import places
from worker.judging import Request
from worker.libraries import loading_libraries

SECONDS_BETWEEN_LOOKS = 1.0


def main() -> None:
    """Judge, and tell."""
    _end_with(os.getppid())
    # Whatever a library prints goes elsewhere: the output carries our lines alone.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def tell(**message: Any) -> None:  # noqa: ANN401 - any JSON value
        output.write(json.dumps(message).encode() + b"\n")
        output.flush()

    with loading_libraries():  # here and not above: the process has to watch whoever asked it while they load
        from worker import answering
        from worker.evaluation.judgement import Judgement
        from worker.explaining import explain

    request = TypeAdapter(Request).validate_json(_line())
    there = threading.Event()
    threading.Thread(target=_wait_for_the_result, args=(there,), daemon=True).start()
    try:
        judgement = answering.answer(request, lambda name: tell(probe=name), there)
    except Exception as error:  # told as far as it may be: its text may quote a record
        expected = explain(error)
        code, message = (expected.code, expected.message) if expected else ("evaluation_failed", _place(error))
        tell(error={"code": code, "message": message})
        return
    tell(judgement=TypeAdapter(Judgement).dump_python(judgement, mode="json"))


def _line() -> bytes:
    """The next line of the input. Without one the process ends: whoever asked has closed the pipe."""
    line = sys.stdin.buffer.readline()
    if not line:
        os._exit(1)
    return line


def _wait_for_the_result(there: threading.Event) -> None:
    _line()
    there.set()


def _place(error: Exception) -> str:
    return f"judging the result failed ({type(error).__name__} at {', '.join(places(error)[-2:])})"


def _end_with(parent: int) -> None:
    """A judge must not outlive the worker that asked it."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main()
