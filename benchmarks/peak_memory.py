"""Peak memory of one way to take a step, in a process of its own: ``python -m benchmarks.peak_memory --help``.

Memory that a process gave back to its allocator is not given back to the system at once, so a second variant in the
same process would be measured on what the first one left. What the allocator holds back also counts in the peak that
the system sees, and varies. With ``live`` it holds nothing back, and the peak is that of the tensors.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_models import NAMES, Case, build_case
from benchmarks.engine_variants import SUM, VARIANTS, build_variant

STEPS = 3
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what Linux wants written to forget the peak so far
# Blocks from this size on are given back to the system when they are freed (mallopt(3), M_MMAP_THRESHOLD).
_NOTHING_HELD_BACK = {"MALLOC_MMAP_THRESHOLD_": str(2**16)}


def measure(
    case: str, variant: str, *, live: bool, device: torch.device, threads: int, seed: int, quick: bool
) -> int | None:
    """Bytes by which the peak of a fresh process grows over the loaded model; None where that cannot be told.

    Args:
        case, variant: names.
        live: count what tensors need alone.
        device, threads, seed, quick: as for `benchmarks.engine`.
    """
    options = ["--model", case, "--variant", variant, "--device", str(device)]
    options += ["--threads", str(threads), "--seed", str(seed), *(["--quick"] if quick else [])]
    command = [sys.executable, "-m", "benchmarks.peak_memory", *options]
    environment = {**os.environ, **(_NOTHING_HELD_BACK if live else {})}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root, env=environment)
    if done.returncode:
        raise RuntimeError(f"the memory of {variant} on {case} was not measured:\n{done.stderr}")
    growth: int | None = json.loads(done.stdout.splitlines()[-1])
    return growth


def growth_in_this_process(case: Case, variant: str) -> int | None:
    """Peak growth in bytes over some steps, from before the variant is built."""
    _warm_up(case)
    gc.collect()
    before = _begin(case.device)
    if before is None:
        return None
    with ExitStack() as stack:
        built = build_variant(variant, case, stack)
        for step in range(STEPS):
            built.step(*case.batch(step))
        return _peak(case.device) - before


def _warm_up(case: Case) -> None:
    """A tiny step, so that libraries that are loaded on first use count as part of the loaded model."""
    examples = [min(side, key=lambda example: len(example.input_ids)) for side in (case.forget, case.retain)]
    small = Case(case.name, case.model, case.tokenizer, examples[:1], examples[1:], case.seed)
    with ExitStack() as stack:
        build_variant(SUM, small, stack).step([0], [0])


def _begin(device: torch.device) -> int | None:
    """Forget the peak so far; bytes in use now. None where the system cannot."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    if not _CLEAR.exists():
        return None
    _CLEAR.write_text(_RESET_PEAK)
    return _status("VmRSS")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    """A field of Linux's account of this process, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def main(arguments: list[str] | None = None) -> None:
    """Measure one variant and print its growth in bytes, as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak_memory", description=__doc__)
    parser.add_argument("--model", choices=NAMES, required=True)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    options: Any = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    case = build_case(options.model, device=options.device, seed=options.seed, quick=options.quick)
    print(json.dumps(growth_in_this_process(case, options.variant)))


if __name__ == "__main__":
    main()
