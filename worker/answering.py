"""What the process that judges does with its request."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from transformers.utils import logging as transformers_logging

from worker.device import choose_dtype, set_up_torch
from worker.evaluation.judgement import Judgement, judge, prepare
from worker.evaluation.loaded import LoadedSubject
from worker.judging import Request
from worker.unlearning.models import load_base


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
        base_knows=request.base_knows,
    )
    spent = prepare(subject, there.is_set)
    there.wait()
    return judge(subject, on_probe, spent)
