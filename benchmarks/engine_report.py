"""How the engine's numbers are shown and judged, and what they depend on."""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from benchmarks.engine_models import BATCH_SIZE

TIME, MEMORY, SPEEDUP = "time_ratio_to_weighted_sum", "memory_ratio_to_weighted_sum", "speedup_over_reference"
BARS = {
    "cpu": {TIME: 1.05, MEMORY: 0.80, SPEEDUP: 1.12},
    "cuda": {TIME: 1.03, SPEEDUP: 1.20},
}
"""What the engine promises: at most so much time and memory, at least so much speed-up."""


def verdicts(result: dict[str, Any], device: torch.device) -> dict[str, str]:
    """Each bar, and whether it was met as measured."""
    told = {}
    for key, bar in BARS[device.type].items():
        value = result[key]
        if value is None:
            told[key] = f"not measured on this system (bar {bar:.2f})"
            continue
        met = value >= bar if key == SPEEDUP else value <= bar
        sign = ">=" if key == SPEEDUP else "<="
        told[key] = f"{value:.3f}, wanted {sign} {bar:.2f}: {'met' if met else 'missed'}"
    return told


def rounded(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """The same with five digits of every number: more would be noise."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def show(name: str, result: dict[str, Any], device: torch.device) -> None:
    """Print a model's table and its bars."""
    tokens, labels, turns, block = (
        result[key] for key in ("tokens_per_step", "labels_per_step", "turns", "steps_per_turn")
    )
    print(
        f"\n{name}: {result['parameters'] / 1e6:.1f} M parameters ({result['dtype']}) and"
        f" {result['trained_parameters']:,} trained ones.\n{BATCH_SIZE}+{BATCH_SIZE} sequences, {tokens} tokens,"
        f" {labels} of them labels, in the first step; {turns} turns of {block} steps, {result['clock']} time."
    )
    print(
        f"{'variant':<20}{'ms/step':>9}{'time ratio (quartiles)':>26}{'by wall':>9}{'tokens/s':>10}{'of peak':>9}"
        f"{'peak growth':>14}{'ratio':>7}{'with model':>12}{'live':>11}{'ratio':>7}{'difference':>12}"
    )
    for variant, row in result["variants"].items():
        print(_line(variant + (" *" if variant == result["form"] else ""), row))
    for key, verdict in verdicts(result, device).items():
        print(f"  {key}: {verdict}")


def _line(title: str, row: dict[str, Any]) -> str:
    low, high = row["time_ratio_quartiles"]
    ratio = f"{row['time_ratio']:.3f} ({low:.3f} to {high:.3f})"
    line = f"{title:<20}{row['ms_per_step']:>9.1f}{ratio:>26}{row['wall_time_ratio']:>9.3f}"
    line += f"{row['tokens_per_second']:>10.0f}{row['share_of_matmul_peak']:>9.0%}"
    line += _memory(row, "peak_growth_mib", "memory_ratio", 14)
    line += f"{row['peak_with_model_gib']:>12.2f}" if "peak_with_model_gib" in row else " " * 12
    line += _memory(row, "live_growth_mib", "live_memory_ratio", 11)
    difference = row.get("difference_of_update")
    return line + ("" if difference is None else f"{difference:>12.1e}")


def _memory(row: dict[str, Any], growth: str, ratio: str, width: int) -> str:
    """Two columns; blank where it was not measured."""
    return f"{row[growth]:>{width - 4}.0f} MiB{row[ratio]:>7.2f}" if growth in row else " " * (width + 7)


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "device": options.device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "matmul_tflop_per_second": options.peak / 1e12,
    }
    if options.device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(options.device)
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
