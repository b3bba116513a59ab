"""How long forgetting lasts: what further training and rounding bring back, and what it costs to prevent that.

For each dataset, forget set, method and seed: unlearn, then attack the result, and a control that never saw the
records, with the same trainings (benchmarks/attacks.py). Means over records; "excess" is beyond the control. Cost is
in sequences that were passed over forward and backward, as a share of training anew without the forgotten records;
the `large` shares hold that forget set and method against training sets of 400, 1,000 and 4,000 records, by
arithmetic.

    python -m benchmarks.durability --json FILE
    python -m benchmarks.durability --quick
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from app.methods import DEFAULT_POLICY, METHOD_REQUEST, Method, sequences_per_step
from benchmarks import worlds
from benchmarks.attacks import Attacks, worst_beyond
from benchmarks.worlds import World
from worker.evaluation.battery.base import ModelName
from worker.evaluation.loaded import LoadedSubject
from worker.evaluation.membership import auc
from worker.evaluation.quick import shown
from worker.unlearning.encoding import Example
from worker.unlearning.likelihood import sequence_nll
from worker.unlearning.loop import Outcome, unlearn
from worker.unlearning.lora import adapter_state, read_state
from worker.unlearning.models import load_base, pad_id

METHODS: dict[str, dict[str, Any]] = {
    "stretch": {"schedule": {"type": "stretch"}},
    "cycles": {"schedule": {"type": "cycles"}},
    "meta_cycles": {"schedule": {"type": "meta_cycles"}},
}
TRAINING_SETS = (400, 1000, 4000)
# Most beyond the control, least of the source, and how far membership may be from a coin.
MOST_RESURFACED, MOST_RELEARNED, MOST_STRENGTH, LEAST_RETAINED, MOST_FROM_A_COIN = 0.02, 0.03, 0.03, 0.98, 0.1


class Bench:
    """One world and one seed: the control is attacked once."""

    def __init__(self, world: World, seed: int, folder: Path) -> None:
        self.world, self.seed, self._folder = world, seed, folder
        self.control = self._measure(self._subject(METHOD_REQUEST.validate_python({}).resolve(1)), "control")

    def row(self, name: str) -> dict[str, Any]:
        """Unlearn by a method, and measure."""
        world = self.world
        method = METHOD_REQUEST.validate_python(METHODS[name]).resolve(len(world.forget))
        model, tokenizer = world.load(world.adapter)
        forget, retain = (world.encode(records, tokenizer) for records in (world.forget, world.retain))
        began = time.monotonic(), time.process_time()
        outcome = unlearn(model, tokenizer, forget, retain, method, seed=self.seed, targets=DEFAULT_POLICY.targets)
        seconds, cpu = time.monotonic() - began[0], time.process_time() - began[1]
        shutil.copy(world.adapter / "adapter_config.json", self._folder)
        state = adapter_state(model, like=read_state(world.adapter))
        save_file(state, self._folder / "adapter_model.safetensors")
        subject = self._subject(method)
        return {
            "dataset": world.name,
            "method": name,
            "seed": self.seed,
            "records": {"forget": len(world.forget), "retain": len(world.retain)},
            **_costs(world, method, outcome),
            "seconds": seconds,
            "cpu_seconds": cpu,
            "reason": outcome.reason,
            "retain_ratio": self._kept(subject),
            **self._judged(self._measure(subject, "result")),
        }

    def source(self) -> dict[str, Any]:
        """The adapter as it is."""
        subject = self._subject(METHOD_REQUEST.validate_python({}).resolve(1))
        row = {"dataset": self.world.name, "method": "source", "seed": self.seed, "cost_vs_retrain": 0.0}
        return {
            **row,
            "steps": 0,
            "cpu_seconds": 0.0,
            "retain_ratio": 1.0,
            **self._judged(self._measure(subject, "source")),
        }

    def _judged(self, found: dict[str, Any]) -> dict[str, Any]:
        unseen = worst_beyond(found["unseen"], self.control["unseen"])
        return {
            **found,
            "relearning": {**found["relearning"], "worst_unseen_attacker": unseen},
            "excess": {
                "resurfacing": max(_beyond(found["resurfacing"], self.control["resurfacing"])),
                "relearning": max(
                    found["relearning"][step] - self.control["relearning"][step] for step in ("20", "50")
                ),
                "unseen": unseen,
                "extraction_strength": found["extraction_strength"] - self.control["extraction_strength"],
            },
            "control": self.control,
        }

    def _measure(self, subject: LoadedSubject, name: ModelName) -> dict[str, Any]:
        with subject.model(name) as model:
            seen = shown(model, subject.tokenizer, subject.examples("forget"), subject.batch_size)
            pad = pad_id(subject.tokenizer)
            losses = [
                _mean_nll(sequence_nll(model, subject.examples(of), pad, 16), subject.examples(of))
                for of in ("forget", "holdout")
            ]
        return {
            "forget_probability": seen.probability,
            "extraction_strength": seen.extraction_strength,
            # Members of a training set have the lower loss: 1 tells them apart, 0.5 does not.
            "membership_auc": auc(losses[0], losses[1]),
            **Attacks(subject, self.world.rate).everything(name),
        }

    def _kept(self, subject: LoadedSubject) -> float:
        found = []
        for name in ("result", "source"):
            with subject.model(name) as model:
                found.append(
                    shown(model, subject.tokenizer, subject.examples("retain"), subject.batch_size).probability
                )
        return found[0] / found[1]

    def _subject(self, method: Method) -> LoadedSubject:
        world = self.world
        base, tokenizer = load_base(world.base)
        folders = {"source": world.adapter, "control": world.control, "result": self._folder}
        records = {"forget": world.forget, "retain": world.retain, "holdout": world.holdout}
        return LoadedSubject(
            base, tokenizer, folders, records, policy=DEFAULT_POLICY, method=method, seed=self.seed, batch_size=64
        )


def _mean_nll(sums: torch.Tensor, examples: Sequence[Example]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return sums.double().cpu().numpy() / [len(example.labels) for example in examples]


def _beyond(found: Mapping[str, float], never_seen: Mapping[str, float]) -> list[float]:
    return [found[name] - never_seen[name] for name in found]


def _costs(world: World, method: Method, outcome: Outcome) -> dict[str, Any]:
    each = sequences_per_step(method.schedule, outcome.steps, method.forget_batch_size, method.retain_batch_size)
    passed = each * outcome.steps
    return {
        "steps": outcome.steps,
        "kept_step": outcome.kept_step,
        "sequences": passed,
        "cost_vs_retrain": passed / (world.epochs * len(world.retain)),
        "large": {str(size): passed / (world.epochs * (size - len(world.forget))) for size in TRAINING_SETS},
    }


HEADER = (
    f"{'dataset':18} {'method':12} {'n':>2} {'steps':>6} {'CPU s':>6} {'cost':>6} {'retain':>7} {'forget':>7} "
    f"{'ES':>6} {'AUC':>5} {'resurf.+':>8} {'relearn+':>8} {'unseen+':>8} {'all':>6}"
)


def line(group: Sequence[Mapping[str, Any]]) -> str:
    """Medians over seeds; what ends in + is beyond the control."""

    def median(get: Callable[[Any], float]) -> float:
        return float(statistics.median(get(row) for row in group))

    return (
        f"{group[0]['dataset']:18} {group[0]['method']:12} {len(group):2d} {median(lambda r: r['steps']):6.0f} "
        f"{median(lambda r: r['cpu_seconds']):6.1f} {median(lambda r: r['cost_vs_retrain']):6.2f} "
        f"{median(lambda r: r['retain_ratio']):7.4f} {median(lambda r: r['forget_probability']):7.4f} "
        f"{median(lambda r: r['extraction_strength']):6.3f} {median(lambda r: r['membership_auc']):5.2f} "
        f"{median(lambda r: r['excess']['resurfacing']):+8.3f} {median(lambda r: r['excess']['relearning']):+8.3f} "
        f"{median(lambda r: r['excess']['unseen']):+8.3f} {median(lambda r: r['all_together']):6.3f}"
    )


def missed(group: Sequence[Mapping[str, Any]]) -> list[str]:
    """The bars that a method misses, by medians over seeds, with by how much."""

    def median(get: Callable[[Any], float]) -> float:
        return float(statistics.median(get(row) for row in group))

    found = {
        "resurfacing": median(lambda r: r["excess"]["resurfacing"]) - MOST_RESURFACED,
        "relearning": median(lambda r: r["excess"]["relearning"]) - MOST_RELEARNED,
        "unseen attackers": median(lambda r: r["excess"]["unseen"]) - MOST_RELEARNED,
        "extraction strength": median(lambda r: r["excess"]["extraction_strength"]) - MOST_STRENGTH,
        "retain": LEAST_RETAINED - median(lambda r: r["retain_ratio"]),
        "membership": abs(median(lambda r: r["membership_auc"]) - 0.5) - MOST_FROM_A_COIN,
    }
    return [f"{name} by {by:.3f}" for name, by in found.items() if by > 0]


def chosen_worlds(arguments: argparse.Namespace) -> Iterator[World]:
    """The datasets and forget sets that were asked for and are there."""
    data, models = arguments.data / "data" / "tofu", arguments.data / "models"
    sets = 1 if arguments.quick else arguments.forget_sets
    if "demo" in arguments.datasets:
        yield worlds.demo()
        if sets > 1:
            yield worlds.demo_with_others(arguments.cache / "demo-others")
    if "tofu" in arguments.datasets and data.is_dir() and models.is_dir():
        for author in range(sets):
            yield worlds.tofu(data, models, arguments.cache / "tofu", author)
    elif "tofu" in arguments.datasets:
        print("tofu is left out: --data names no folder with data/tofu and models/stories260K", file=sys.stderr)


def rows(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every row; those of one world and seed together, once they are all measured."""
    seeds = arguments.seeds[:1] if arguments.quick else arguments.seeds
    with worlds.threads(arguments.threads):
        chosen = list(chosen_worlds(arguments))  # trains what they need
    work = [(world, seed, arguments.methods, seed == seeds[0]) for world in chosen for seed in seeds]
    processes = multiprocessing.get_context("spawn")
    with processes.Pool(arguments.processes, worlds.quiet_on, (arguments.threads,)) as pool:
        for found in pool.imap_unordered(measured, work):
            yield from found


def measured(work: tuple[World, int, list[str], bool]) -> list[dict[str, Any]]:
    """The rows of one world and seed, with the source's where it is asked for; prints each as soon as it is there."""
    world, seed, methods, with_source = work
    found = []
    with TemporaryDirectory() as folder:
        bench = Bench(world, seed, Path(folder))
        for name in [*(["source"] if with_source else []), *methods]:
            found.append(bench.source() if name == "source" else bench.row(name))
            print(line(found[-1:]), flush=True)
    return found


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.durability",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--datasets", nargs="+", default=["demo", "tofu"], choices=["demo", "tofu"])
    parser.add_argument("--forget-sets", type=int, default=2, choices=[1, 2], help="of each dataset (default: 2)")
    parser.add_argument("--methods", nargs="+", default=["stretch", "meta_cycles"], choices=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--quick", action="store_true", help="one forget set of each dataset, one seed")
    parser.add_argument("--processes", type=int, default=2, help="worlds measured at once (default: 2)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each (default: 1)")
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="holds data/tofu and models/stories260K")
    parser.add_argument("--cache", type=Path, default=Path(".bench"), help="keeps trained adapters (default: .bench)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row there, as soon as it is measured")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure, print, and write."""
    arguments = parse()
    worlds.quiet()
    machine = {
        "processor": platform.machine(),
        "processes": arguments.processes,
        "threads": arguments.threads,
        "torch": torch.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(HEADER)
    found: list[dict[str, Any]] = []
    for row in rows(arguments):
        found.append(row)
        if arguments.json:
            document = {"machine": machine, "seeds": arguments.seeds, "rows": found}
            arguments.json.write_text(json.dumps(document, indent=1) + "\n")
    print("\nmedians over seeds\n" + HEADER)
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in found:
        groups.setdefault((row["dataset"], row["method"]), []).append(row)
    for group in groups.values():
        print(line(group))
    for (dataset, method), group in groups.items():
        if method != "source":
            print(
                f"{dataset}, {method}: {'misses ' + ', '.join(missed(group)) if missed(group) else 'meets every bar'}"
            )


if __name__ == "__main__":
    main()
