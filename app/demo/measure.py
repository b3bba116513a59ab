"""Measuring adapters outside the service: a fresh process, plain PEFT, the same definitions."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.demo.files import DemoError, DemoFiles
from app.embedded.process import Child

SETS = ("forget", "retain")
METRICS = ("probability", "extraction_strength", "exact_memorisation", "rouge_l_recall", "nll")
TOLERANCE = 1e-4
ANSWERS = 6
# Innocent further training: on what is kept, at the rate that the demo's adapter was trained at (examples/demo).
TRAINING = ("--train-on=retain", "--epochs=3", "--learning-rate=2e-3")
AT_ONCE = 2
MEASURE_SECONDS = 600.0

Measurement = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """One thing to measure: `adapter` None is the base model alone; the same inputs need measuring once."""

    name: str
    adapter: Path | None
    reusable: bool


def measure_all(targets: Sequence[Target], files: DemoFiles, folder: Path) -> dict[str, Measurement]:
    """Measures each target, two processes at a time; earlier results of the same files are reused."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs = {target.name: output_path(target, files, folder) for target in targets}
    pending = [target for target in targets if not (target.reusable and outputs[target.name].exists())]
    for start in range(0, len(pending), AT_ONCE):
        run_together(pending[start : start + AT_ONCE], files, outputs)
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in outputs.items()}


def run_together(targets: Sequence[Target], files: DemoFiles, outputs: Mapping[str, Path]) -> None:
    """Starts one process per target and waits for all; none outlives a failure or Ctrl-C."""
    children = [Child(target.name, command(target, files, outputs[target.name])) for target in targets]
    try:
        for child in children:
            child.start()
        deadline = time.monotonic() + MEASURE_SECONDS
        for child in children:
            child.wait(max(deadline - time.monotonic(), 0.0))
    finally:
        for child in children:
            child.finish()
    for child in children:
        if child.exit_code != 0:
            raise DemoError(f"measuring the {child.name} failed:\n" + "\n".join(child.last_lines))
    for target in targets:
        partial(outputs[target.name]).replace(outputs[target.name])


def command(target: Target, files: DemoFiles, output: Path) -> list[str]:
    """The public command line that anyone can repeat."""
    sets = [f"--set={name}={files.records(name)}" for name in SETS]
    adapter = "none" if target.adapter is None else str(target.adapter)
    base = [sys.executable, "-m", "worker.reproduce", "--base", str(files.base), "--adapter", adapter]
    return [*base, *sets, *TRAINING, "--answers", str(ANSWERS), "--threads", "1", "--json", str(partial(output))]


def partial(output: Path) -> Path:
    """Where a result is written before it is complete."""
    return output.with_suffix(".new")


def output_path(target: Target, files: DemoFiles, folder: Path) -> Path:
    """Named after everything that goes in, so that a changed file is measured again."""
    inputs = [path for path in (files.base, target.adapter, *map(files.records, SETS)) if path is not None]
    digest = hashlib.sha256(f"{target.name} {ANSWERS} {TRAINING}".encode())
    for path in inputs:
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return folder / f"{target.name}-{digest.hexdigest()[:16]}.json"


def largest_difference(evaluation: Mapping[str, Any], measured: Mapping[str, Measurement]) -> float:
    """Largest absolute difference between the service's numbers and ours, over models, sets and metrics."""
    return max(
        difference(evaluation["models"][model][name][metric], measured[model]["sets"][name][metric])
        for model in ("source", "result", "base")
        for name in SETS
        for metric in METRICS
    )


def difference(reported: float, measured: float) -> float:
    """Absolute difference; infinite where either is no number."""
    value = abs(reported - measured)
    return value if math.isfinite(value) else math.inf
