"""Runs without the computing: training and judging are played back from runs that were carried out before.

All around it is the real recipe. What is trained is a mark for each job, put beside those that the source holds
already, so that the bytes of a version tell which erasures are in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file

from app.adapters.service import WEIGHTS_NAME
from app.adapters.tables import AdapterVersion
from app.settings import get_settings
from tests.worker import tiny_jobs
from tests.worker.conftest import Tiny
from tests.worker.judges import JudgeHere
from tests.worker.tiny_jobs import add_tiny_adapter
from worker import packaging, recipe
from worker.database import storage
from worker.errors import JobError
from worker.evaluation.judgement import Judgement
from worker.execution import execute
from worker.judging import Request
from worker.recipe import Workbench
from worker.unlearning import loop
from worker.unlearning.checkpoint import Checkpoint
from worker.unlearning.loop import Outcome, Watcher

# Seeds of jobs that end otherwise: by an expected error, by a crash of the training, at the gate.
REFUSED, BROKEN, SHUT = 1, 2, 3
STEPS = 3
_MARK = "erased."


@dataclass
class Recording:
    """What runs on a tiny model gave: how training went, and what the judge said, by the gate's verdict."""

    outcome: Outcome | None = None
    judgements: dict[str, Judgement] = field(default_factory=dict)


def record(tiny: Tiny) -> Recording:
    """Carry out two runs, one behind an open gate and one behind a shut one."""
    recording, unlearn, adapter = Recording(), loop.unlearn, add_tiny_adapter(tiny)

    def trained(*args: Any, **kwargs: Any) -> Outcome:
        recording.outcome = unlearn(*args, **kwargs)
        return recording.outcome

    class Listening(JudgeHere):
        def judge(self, *args: Any) -> Judgement:
            judgement = super().judge(*args)
            return recording.judgements.setdefault(judgement.gate.verdict, judgement)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "unlearn", trained)
        patch.setattr(recipe, "Judge", Listening)
        for policy in (tiny_jobs.SHUT, tiny_jobs.OPEN):
            job = tiny_jobs.tiny_job(adapter, policy)
            execute(job.run_id, "recorder", get_settings(), recipe.carry_out)
    assert set(recording.judgements) == {"passed", "failed"}
    return recording


def play_back(recording: Recording, patch: pytest.MonkeyPatch) -> None:
    """Have runs computed by the recording from now on."""

    class Recorded(JudgeHere):
        def judge(self, request: Request, check: Callable[[], None], on_probe: Callable[[str], None], *_: Any) -> Any:
            check()
            on_probe("recall")
            return recording.judgements["failed" if request.seed == SHUT else "passed"]

    def unlearn(*_args: Any, seed: int, watcher: Watcher, resume: Checkpoint | None = None, **_knobs: Any) -> Any:
        first = resume.scalars["step"] if resume else 0
        for step in range(first + 1, STEPS + 1):
            watcher.on_step(step, STEPS)
            if seed == REFUSED:
                raise JobError("unlearning_failed", "refused")
            if seed == BROKEN:
                raise ValueError
            if watcher.wants_checkpoint():
                watcher.on_checkpoint(Checkpoint("f" * 64, {"x": torch.zeros(2)}, {"step": step}))
        return recording.outcome

    patch.setattr(recipe, "Judge", Recorded)
    patch.setattr(recipe, "unlearn", unlearn)
    patch.setattr(recipe, "_load", lambda _bench, _folders: (None, None))
    patch.setattr(recipe, "_material", lambda order, *_: ({"forget": [], "retain": []}, order.method, None))
    patch.setattr(recipe, "_write_result", _write_result)


def _write_result(bench: Workbench, _model: None) -> Any:
    source, order = load_file(bench.folder / "source" / WEIGHTS_NAME), bench.order
    state = source | {f"{_MARK}{order.job_id}": torch.zeros(1)}
    folder = bench.folder / "result"
    packaging.write_adapter_directory(
        folder, state, recipe._config(bench), base_model_name=order.base.name, revision=None, card=""
    )
    return folder


def erased(version: AdapterVersion) -> set[str]:
    """Jobs whose erasure is in a version's bytes."""
    with storage().open(version.weights_key) as file:
        return {name.removeprefix(_MARK) for name in load(file.read()) if name.startswith(_MARK)}
