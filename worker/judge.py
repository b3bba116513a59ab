"""The process that judges a result: ``python -m worker.judge``, started by `worker.judging`.

One request on its input, then one line when the result is there; lines of JSON on its output. What does not need the
result is measured while it is waited for.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from pydantic import TypeAdapter
from transformers.utils import logging as transformers_logging

from app.kit.logs import places
from worker.device import choose_dtype, set_up_torch
from worker.evaluation.judgement import Judgement, judge, prepare
from worker.evaluation.loaded import LoadedSubject
from worker.explaining import explain
from worker.judging import Request
from worker.unlearning.models import load_base

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

    request = TypeAdapter(Request).validate_json(sys.stdin.buffer.readline())
    there = threading.Event()
    threading.Thread(target=_wait_for_the_result, args=(there,), daemon=True).start()
    try:
        judgement = answer(request, lambda name: tell(probe=name), there)
    except Exception as error:  # told as far as it may be: its text may quote a record
        expected = explain(error)
        code, message = (expected.code, expected.message) if expected else ("evaluation_failed", _place(error))
        tell(error={"code": code, "message": message})
        return
    tell(judgement=TypeAdapter(Judgement).dump_python(judgement, mode="json"))


def answer(request: Request, on_probe: Callable[[str], None], there: threading.Event) -> Judgement:
    """Load what is to be judged, and judge it.

    Args:
        request: what is to be judged.
        on_probe: called with each probe's name as it begins.
        there: set when the result's files are.
    """
    set_up_torch(request.threads)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call] # transformers leaves it untyped
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # transformers leaves it untyped
    device = torch.device(request.device)
    base, tokenizer = load_base(
        request.base, device=device, dtype=choose_dtype(device), four_bit=request.four_bit, spread=request.spread
    )
    subject = LoadedSubject(
        base,
        tokenizer,
        request.adapters,
        request.records,
        policy=request.policy,
        method=request.method,
        seed=request.seed,
    )
    spent = prepare(subject, there.is_set)
    there.wait()
    return judge(subject, on_probe, spent)


def _wait_for_the_result(there: threading.Event) -> None:
    if sys.stdin.buffer.readline():
        there.set()
    else:
        os._exit(1)  # whoever asked has closed the pipe: there will be no result


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
