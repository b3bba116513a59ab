"""What a step of the engine costs: ``python -m benchmarks.engine --help``.

Every variant takes the same steps on the same records in one process, in turns, and its time is compared within a
turn: whatever else the machine is doing slows all of them alike. Before that, every variant's update is compared
with the engine's on the same batch, because the time of a wrong step says nothing. Memory is measured in a process
of its own for every variant (peak_memory.py).
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine_models import NAMES, SMALL, Case, build_case
from benchmarks.engine_report import MEMORY, SPEEDUP, TIME, machine, rounded, show, verdicts
from benchmarks.engine_variants import REFERENCE, SUM, VARIANTS, Variant, build_variant, disagreement, picked
from benchmarks.peak_memory import measure

WARM_UP = 3
MEMORY_RUNS = 3  # an allocator's reserves make the peak of a process vary by some per cent
SHORT_BLOCK = 5  # steps that are timed as one, where a step is short or the host may run ahead of the device
MOST_DISAGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
MATMUL = {"cpu": (1024, torch.float32), "cuda": (8192, torch.bfloat16)}

EPILOG = """\
variants:
  weighted sum       the least: one forward and backward pass over forget and retain rows together, in plain torch
                     and PEFT, with everything precomputed that can be; the time and memory of the others are
                     ratios to it
  Lethe, one pass    this repository's step: both gradients apart, from one concatenated pass
  Lethe, two passes  the same step in two passes, one after the other; the form that a device picks is marked *
  Lethe, base anchor the picked form with the default knob "anchor": "base", which the others do not have
  reference recipe   BLUR as the paper's code takes it, made correct for LoRA

columns:
  time ratio         to the weighted sum, median over the turns; on a CPU with one thread by processor time, which
                     other work on the machine changes little, else by the wall's clock
  of peak            share of a large matrix product's speed, counting the work of the weighted sum alone
  peak growth        of the memory that the system sees, over that of the loaded model
  with model         that growth and the weights, in GiB
  live               the growth of the tensors alone, without what the allocator holds back

models:
  demo               examples/demo: the base model, its adapter and its records
  llama-40m          42 M random parameters, 128 tokens per sequence, float32
  llama-1b, llama-8b random weights in the shapes of Llama-3.2-1B and Llama-3.1-8B, 512 tokens, bfloat16; for GPUs

examples:
  python -m benchmarks.engine --json result.json
  python -m benchmarks.engine --models demo --steps 100
  python -m benchmarks.engine --device cuda --models llama-1b,llama-8b
"""


@dataclass(frozen=True)
class Timing:
    """Seconds per step of every variant, one entry per turn.

    Attributes:
        seconds: by the clock that the ratios are taken from.
        wall: by the clock on the wall.
    """

    seconds: dict[str, list[float]]
    wall: dict[str, list[float]]

    def ratio(self, name: str, to: str) -> list[float]:
        """Within each turn, by how much one variant is slower than another."""
        return _ratios(self.seconds, name, to)

    def wall_ratio(self, name: str, to: str) -> list[float]:
        """The same by the clock on the wall."""
        return _ratios(self.wall, name, to)


def _ratios(seconds: dict[str, list[float]], name: str, to: str) -> list[float]:
    return [a / b for a, b in zip(seconds[name], seconds[to], strict=True)]


def take_turns(case: Case, variants: dict[str, Variant], turns: int, block: int) -> Timing:
    """Time the variants in turns, each in another order, so that none always follows the same one."""
    timing = Timing({name: [] for name in variants}, {name: [] for name in variants})
    order = list(variants)
    shuffle = random.Random(case.seed).shuffle
    for turn in range(-WARM_UP, turns):
        batches = [case.batch((turn + WARM_UP) * block + number) for number in range(block)]
        shuffle(order)
        for name in order:
            seconds, wall = _timed(variants[name], batches, case.device)
            if turn >= 0:
                timing.seconds[name].append(seconds / block)
                timing.wall[name].append(wall / block)
    return timing


def clock(device: torch.device) -> str:
    """What the ratios are taken from.

    One thread on a CPU computes all the time and waits for nothing. Its processor time is what the step would take
    on a machine without other work, while the wall's clock also shows how the system shares its cores.
    """
    return "processor" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def _timed(
    variant: Variant, batches: Sequence[tuple[list[int], list[int]]], device: torch.device
) -> tuple[float, float]:
    """Seconds by `clock` and by the wall."""
    _wait(device)
    processor, wall = time.process_time(), time.perf_counter()
    for batch in batches:
        variant.step(*batch)
    _wait(device)
    processor, wall = time.process_time() - processor, time.perf_counter() - wall
    return (processor if clock(device) == "processor" else wall), wall


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_peak(device: torch.device) -> float:
    """Floating-point operations per second of a large matrix product, in the type that models have there."""
    size, dtype = MATMUL[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    taken = []
    for _ in range(20):
        _wait(device)
        start = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        taken.append(time.perf_counter() - start)
    return 2 * size**3 / median(taken)


def flop(variant: Variant, batch: tuple[list[int], list[int]]) -> int:
    """Floating-point operations of the matrix products of one forward and backward pass."""
    with FlopCounterMode(display=False) as counter:
        variant.update(*batch)
    return int(counter.get_total_flops())


def measure_model(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything about one model: what goes into the JSON file under its name."""
    # First, while this process holds nothing on the device.
    growth = measure_memory(name, options)
    case = build_case(name, device=options.device, seed=options.seed, quick=options.quick)
    with ExitStack() as stack:
        variants = {variant: build_variant(variant, case, stack) for variant in VARIANTS}
        differences = agree(case, variants)
        block = SHORT_BLOCK if name == "demo" or case.device.type == "cuda" else 1
        timing = take_turns(case, variants, options.steps, block)
        work = flop(variants[SUM], case.batch(0))
    result = _describe(case) | {
        "clock": clock(case.device),
        "turns": options.steps,
        "steps_per_turn": block,
        "tflop_per_step": work / 1e12,
    }
    rows = {variant: _time_row(variant, timing, result, options.peak) for variant in VARIANTS}
    for variant in VARIANTS:
        rows[variant] |= _memory_row(growth[variant], growth[SUM], result["model_mib"])
        if variant in differences:
            rows[variant]["difference_of_update"] = differences[variant]
    return _headline(rows, timing, picked(case.device)) | result | {"variants": rows}


def measure_memory(name: str, options: argparse.Namespace) -> dict[str, dict[str, list[int]]]:
    """Peak growth of every variant in bytes, as the system sees it and of the tensors alone; a list by process."""
    judged = (SUM, picked(options.device))
    exact = options.quick or options.device.type == "cuda"
    fixed = {"device": options.device, "threads": options.threads, "seed": options.seed, "quick": options.quick}
    growth: dict[str, dict[str, list[int]]] = {variant: {"peak": [], "live": []} for variant in VARIANTS}
    for variant in judged if options.quick else VARIANTS:
        runs = MEMORY_RUNS if variant in judged and not exact else 1
        for kind, count in (("peak", runs), ("live", 0 if exact else 1)):
            found = [measure(name, variant, live=kind == "live", **fixed) for _ in range(count)]
            growth[variant][kind] = [value for value in found if value is not None]
    return growth


def agree(case: Case, variants: dict[str, Variant]) -> dict[str, float]:
    """Stop unless every variant makes the same of one batch; returns how far they are apart."""
    found = disagreement(variants, case.batch(0))
    most = MOST_DISAGREEMENT[case.dtype]
    if wrong := {name: value for name, value in found.items() if not value <= most}:
        raise SystemExit(f"{case.name}: updates differ from the engine's by more than {most}: {wrong}")
    return found


def _describe(case: Case) -> dict[str, Any]:
    forget, retain = case.batch(0)
    examples = [case.forget[i] for i in forget] + [case.retain[i] for i in retain]
    trained = sum(p.numel() for p in case.model.parameters() if p.requires_grad)
    return {
        "parameters": sum(p.numel() for p in case.model.parameters()) - trained,
        "model_mib": sum(p.numel() * p.element_size() for p in case.model.parameters()) / 2**20,
        "trained_parameters": trained,
        "dtype": str(case.dtype).removeprefix("torch."),
        "tokens_per_step": sum(len(example.input_ids) for example in examples),
        "labels_per_step": sum(len(example.labels) for example in examples),
    }


def _time_row(variant: str, timing: Timing, model: dict[str, Any], peak: float) -> dict[str, Any]:
    """A variant's times. Shares of the peak count the work of the weighted sum, and not what one does on top."""
    seconds, ratios = timing.seconds[variant], timing.ratio(variant, SUM)
    return {
        "ms_per_step": median(seconds) * 1e3,
        "ms_quartiles": [value * 1e3 for value in _quartiles(seconds)],
        "wall_ms_per_step": median(timing.wall[variant]) * 1e3,
        "wall_time_ratio": median(timing.wall_ratio(variant, SUM)),
        "time_ratio": median(ratios),
        "time_ratio_quartiles": _quartiles(ratios),
        "tokens_per_second": model["tokens_per_step"] / median(seconds),
        "share_of_matmul_peak": model["tflop_per_step"] * 1e12 / median(seconds) / peak,
    }


def _memory_row(growth: dict[str, list[int]], of_sum: dict[str, list[int]], model_mib: float) -> dict[str, Any]:
    """A variant's memory; empty where it was not measured."""
    row: dict[str, Any] = {}
    if growth["peak"]:
        row["peak_growth_mib"] = median(growth["peak"]) / 2**20
        row["peak_growth_mib_of_each_process"] = [value / 2**20 for value in growth["peak"]]
        row["memory_ratio"] = median(growth["peak"]) / median(of_sum["peak"])
        row["peak_with_model_gib"] = (row["peak_growth_mib"] + model_mib) / 1024
    if growth["live"]:
        row["live_growth_mib"] = median(growth["live"]) / 2**20
        row["live_memory_ratio"] = median(growth["live"]) / median(of_sum["live"])
    return row


def _quartiles(values: Sequence[float]) -> list[float]:
    lower, _, upper = quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return [lower, upper]


def _headline(rows: dict[str, dict[str, Any]], timing: Timing, form: str) -> dict[str, Any]:
    """The three numbers of the form that the engine picks."""
    return {
        TIME: rows[form]["time_ratio"],
        MEMORY: rows[form].get("memory_ratio"),
        SPEEDUP: median(timing.ratio(REFERENCE, form)),
        "form": form,
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engine",
        description="Time and peak memory of one unlearning step, against a plain weighted sum of both losses and "
        "against the recipe of the paper's code.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--models", type=_models, help="names, with commas; default: all that the device is for")
    parser.add_argument("--steps", type=int, help="timed turns after the warm-up; default 20, 3 with --quick")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU; default 1")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda; default cpu")
    parser.add_argument("--seed", type=int, default=0, help="of weights, records and their order; default 0")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="random models of no size, to see that everything runs; times mean nothing",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to a file")
    options = parser.parse_args(arguments)
    options.models = options.models or (NAMES if options.device.type == "cuda" else SMALL)
    options.steps = options.steps or (3 if options.quick else 20)
    return options


def _models(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in NAMES]:
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}")
    return names


def command(options: argparse.Namespace) -> str:
    """The call that gives these numbers again, in full, without the folder that they were written to."""
    return (
        f"python -m benchmarks.engine --models {','.join(options.models)} --steps {options.steps}"
        f" --threads {options.threads} --device {options.device} --seed {options.seed}"
        f"{' --quick' if options.quick else ''}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the file."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    options.peak = matmul_peak(options.device)
    report: dict[str, Any] = {"models": {}, "machine": machine(options), "command": command(options)}
    for name in options.models:
        result = measure_model(name, options)
        result["bars"] = verdicts(result, options.device)
        report["models"][name] = result
        show(name, result, options.device)
    if options.json:
        options.json.write_text(json.dumps(rounded(report), indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
