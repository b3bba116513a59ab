"""What every forget loss forgets and keeps, under a weighted sum and under BLUR.

Same base, same adapter, same budget. Every method gets a small sweep of its own on the first seed; the setting that
kept most when it had forgotten is then run on all seeds. BLUR's default is also run on all seeds, untuned.

A method has forgotten at the first probe where the extraction strength of the forget set is at the level of the
control adapter, which never saw these records, plus 0.03. Retain probability, model utility and forget quality are
those of that point.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from app.methods import FORGET_LOSSES, METHOD_REQUEST
from benchmarks import worlds
from benchmarks.utility import forget_quality, measure_utility, truth_ratios
from benchmarks.worlds import World
from worker.unlearning.encoding import Example
from worker.unlearning.likelihood import sequence_nll
from worker.unlearning.loop import UnlearningError, Watcher, unlearn
from worker.unlearning.models import pad_id
from worker.unlearning.probe import Shown, look, sample

SLACK = 0.03  # extraction strength above the control's
PROBE_EVERY = 10
RETAIN_SAMPLE = 72
COLLAPSED = 0.2  # retain probability below which a run is given up
BUDGET = {"demo": 160, "tofu": 160}
# Weights of the forget loss in a weighted sum: losses differ by orders of magnitude in the size of their gradient.
WEIGHTS = {"npo": (0.05, 0.2), "idk_dpo": (0.05, 0.2), "simnpo": (4.0, 16.0), "rmu": (0.01, 0.05)}
OTHER_WEIGHTS = (0.1, 0.4)
DEFAULT: dict[str, Any] = {"type": "blur"}
# Each against BLUR's default; not swept, because they differ from it in one knob.
VARIANTS: dict[str, dict[str, Any]] = {
    "blur_preconditioned": {"type": "blur", "projection": "preconditioned"},
    "blur_by_layer": {"type": "blur", "scope": "layer"},
    "blur_by_module": {"type": "blur", "scope": "module"},
    "forget_upper": {"type": "forget_upper"},
    "pdu": {"type": "pdu"},
}


def sweep(loss: str, combiner: str) -> list[dict[str, Any]]:
    """The settings that a method may choose from, as requests; BLUR's first one is its default."""
    if combiner in VARIANTS:
        return [VARIANTS[combiner]]
    if combiner == "blur":
        relative = {"type": "blur", "gamma_scale": "relative"}
        return [DEFAULT, {**relative, "gamma": 1.0}, {**relative, "gamma": 0.3, "anchor": "none"}]
    low, high = WEIGHTS.get(loss, OTHER_WEIGHTS)
    summed = {"type": "weighted_sum"}
    return [{**summed, "gamma": low, "anchor": "none"}, {**summed, "gamma": low}, {**summed, "gamma": high}]


@dataclass(frozen=True)
class Point:
    """A probe: steps, both sets, and the forget set's NLL in nats per token."""

    step: int
    forget: Shown
    retain: Shown
    forget_nll: float


@dataclass(frozen=True)
class Run:
    """One run: its probes, the first point at which it had forgotten, and the factors there."""

    points: list[Point]
    reached: Point | None
    factors: list[Tensor]
    seconds: float


class Bench:
    """One world, loaded once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.control = self.score(*world.load(world.control))
        self.source = self.score(*world.load(world.adapter))

    def score(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """Everything that is reported of a model."""
        world = self.world
        forget = world.encode(world.forget, tokenizer)
        point = self.look(model, tokenizer, forget, self.retained(tokenizer), step=0)
        ratios = truth_ratios(world, model, tokenizer, world.forget_questions)
        utility = measure_utility(world, model, tokenizer)
        return {"point": point, "truth_ratios": ratios, "utility": utility}

    def retained(self, tokenizer: PreTrainedTokenizerBase) -> list[Example]:
        """The same sample of the retain set for everybody."""
        return sample(self.world.encode(self.world.retain, tokenizer), RETAIN_SAMPLE, seed=0)

    def look(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        forget: Sequence[Example],
        retain: Sequence[Example],
        step: int,
    ) -> Point:
        """Probe both sets."""
        pad, end = pad_id(tokenizer), tokenizer.eos_token_id
        tokens = torch.tensor([len(example.labels) for example in forget])
        nll = float((sequence_nll(model, forget, pad, 16).cpu() / tokens).mean())
        return Point(step, look(model, forget, pad, end, 16), look(model, retain, pad, end, 16), nll)

    def forgotten(self, point: Point) -> bool:
        """Whether a point is at the control's level."""
        limit = self.control["point"].forget.extraction_strength + SLACK
        return bool(point.forget.extraction_strength <= limit)

    def run(self, loss: str, setting: Mapping[str, Any], seed: int) -> tuple[Run, PeftModel, PreTrainedTokenizerBase]:
        """Unlearn until forgotten, collapsed, or out of budget."""
        model, tokenizer = self.world.load(self.world.adapter)
        forget = self.world.encode(self.world.forget, tokenizer)
        retain = self.world.encode(self.world.retain, tokenizer)
        request = {
            **setting,
            "forget_loss": {"type": loss},
            "steps": BUDGET[self.world.name],
            "stop": {"type": "steps"},
        }
        method = METHOD_REQUEST.validate_python(request).resolve(len(forget))
        watcher = _Prober(self, model, tokenizer, forget, self.retained(tokenizer))
        started = time.monotonic()
        with suppress(_Enough, UnlearningError):  # forgotten, or diverged: what was seen before counts
            unlearn(model, tokenizer, forget, retain, method, seed=seed, watcher=watcher)
        seconds = time.monotonic() - started
        return Run(watcher.points, watcher.reached, watcher.factors, seconds), model, tokenizer


class _Enough(Exception):
    """The run has shown what it was made for."""


class _Prober(Watcher):
    """Probes now and then, and ends the run at the first point that has forgotten."""

    def __init__(
        self,
        bench: Bench,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        forget: Sequence[Example],
        retain: Sequence[Example],
    ) -> None:
        self._bench, self._model, self._tokenizer = bench, model, tokenizer
        self._forget, self._retain = forget, retain
        self.points: list[Point] = []
        self.reached: Point | None = None
        self.factors: list[Tensor] = []

    def on_step(self, step: int, total: int) -> None:
        """Every so many steps, and at the last."""
        if step % PROBE_EVERY and step != total:
            return
        point = self._bench.look(self._model, self._tokenizer, self._forget, self._retain, step)
        self.points.append(point)
        if self._bench.forgotten(point):
            self.reached = point
            self.factors = [p.detach().clone() for p in self._model.parameters() if p.requires_grad]
            raise _Enough
        if point.retain.probability < COLLAPSED:
            raise _Enough


def measure(bench: Bench, loss: str, combiner: str, setting: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """One row of the table: a run, and its model at the point where it had forgotten."""
    run, model, tokenizer = bench.run(loss, setting, seed)
    last = run.reached or run.points[-1]
    row: dict[str, Any] = {
        "dataset": bench.world.name,
        "forget_loss": loss,
        "combiner": combiner,
        "setting": dict(setting),
        "default": dict(setting) == DEFAULT,
        "seed": seed,
        "reached": run.reached is not None,
        "steps": last.step,
        "seconds": round(run.seconds, 2),
        "forget": {**asdict(last.forget), "nll": last.forget_nll},
        "retain": {**asdict(last.retain), "source_probability": bench.source["point"].retain.probability},
        "control": _control(bench),
    }
    if run.reached is not None:
        with torch.no_grad():
            trained = (p for p in model.parameters() if p.requires_grad)
            for parameter, kept in zip(trained, run.factors, strict=True):
                parameter.copy_(kept)
        utility = measure_utility(bench.world, model, tokenizer)
        ratios = truth_ratios(bench.world, model, tokenizer, bench.world.forget_questions)
        row["utility"] = asdict(utility)
        row["forget_quality"] = forget_quality(ratios, bench.control["truth_ratios"])
    return row


def _control(bench: Bench) -> dict[str, Any]:
    point, utility = bench.control["point"], bench.control["utility"]
    return {
        "forget": {**asdict(point.forget), "nll": point.forget_nll},
        "retain": asdict(point.retain),
        "utility": asdict(utility),
    }


def choose(bench: Bench, loss: str, combiner: str, seed: int) -> dict[str, Any]:
    """The setting of the sweep that kept most where it had forgotten."""
    settings = sweep(loss, combiner)
    best: tuple[tuple[bool, float], dict[str, Any]] = (False, float("-inf")), settings[0]
    for setting in settings if len(settings) > 1 else ():
        run, _, _ = bench.run(loss, setting, seed)
        last = run.reached or run.points[-1]
        # Settings that never forgot are compared by how little they still show.
        key = (True, last.retain.probability) if run.reached else (False, -last.forget.extraction_strength)
        if key > best[0]:
            best = key, setting
    return best[1]


def rows(
    bench: Bench, losses: Sequence[str], combiners: Sequence[str], seeds: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Every row of a world's table, as it is measured."""
    for loss in losses:
        for combiner in combiners:
            settings = [choose(bench, loss, combiner, seeds[0])]
            if combiner == "blur" and settings[0] != DEFAULT:
                settings.append(DEFAULT)
            for setting in settings:
                for seed in seeds:
                    yield measure(bench, loss, combiner, setting, seed)


COMBINERS = ["weighted_sum", "blur", *VARIANTS]
HEADER = (
    f"{'dataset':7} {'loss':8} {'combiner':22} {'n':>2} {'reached':>7} {'steps':>6} {'retain':>13} "
    f"{'of source':>9} {'utility':>7} {'forget ES':>9} {'prob':>6} {'NLL':>6} {'KS p':>8}"
)


def line(group: Sequence[Mapping[str, Any]]) -> str:
    """One method over all seeds: means, and the spread of what it kept."""
    first = group[0]
    kept = [row["retain"]["probability"] for row in group]
    name = first["combiner"] + (" (default)" if first["default"] else "")
    utility = [row["utility"]["harmonic_mean"] for row in group if "utility" in row]
    quality = [row["forget_quality"]["p_value"] for row in group if "forget_quality" in row]
    return (
        f"{first['dataset']:7} {first['forget_loss']:8} {name:22} {len(group):2d} "
        f"{sum(row['reached'] for row in group):7d} {_mean(row['steps'] for row in group):6.0f} "
        f"{_mean(kept):.4f}±{(max(kept) - min(kept)) / 2:.4f} "
        f"{_mean(kept) / first['retain']['source_probability']:9.4f} "
        f"{_mean(utility) if utility else float('nan'):7.4f} "
        f"{_mean(row['forget']['extraction_strength'] for row in group):9.4f} "
        f"{_mean(row['forget']['probability'] for row in group):6.4f} "
        f"{_mean(row['forget']['nll'] for row in group):6.2f} "
        f"{statistics.median(quality) if quality else float('nan'):8.2g}"
    )


def _mean(values: Any) -> float:  # noqa: ANN401 - any iterable of numbers
    return statistics.fmean(values)


def grouped(table: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows that differ in their seed alone."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in table:
        key = json.dumps([row["dataset"], row["forget_loss"], row["combiner"], row["setting"]], sort_keys=True)
        groups.setdefault(key, []).append(row)
    yield from groups.values()


def describe(label: str, scores: Mapping[str, Any]) -> str:
    """One line about a model that is compared with."""
    point, utility = scores["point"], scores["utility"]
    return (
        f"  {label:8} forget ES {point.forget.extraction_strength:.4f}, probability {point.forget.probability:.4f}, "
        f"NLL {point.forget_nll:.2f}; retain probability {point.retain.probability:.4f}; "
        f"utility {utility.harmonic_mean:.4f}"
    )


def chosen_worlds(arguments: argparse.Namespace) -> Iterator[World]:
    """The datasets that were asked for and are there."""
    if "demo" in arguments.datasets:
        yield worlds.demo()
    if "tofu" in arguments.datasets:
        data, models = arguments.data / "data" / "tofu", arguments.data / "models"
        if data.is_dir() and models.is_dir():
            print("tofu: training the adapter and its control, once per cache", file=sys.stderr)
            yield worlds.tofu(data, models, arguments.cache / "tofu")
        else:
            print("tofu is left out: --data names no folder with data/tofu and models/stories260K", file=sys.stderr)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--datasets", nargs="+", default=["demo", "tofu"], choices=["demo", "tofu"])
    parser.add_argument("--losses", nargs="+", default=list(FORGET_LOSSES), choices=list(FORGET_LOSSES))
    parser.add_argument("--combiners", nargs="+", default=["weighted_sum", "blur"], choices=COMBINERS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, help="most steps of a run, in place of the dataset's own budget")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--data", type=Path, default=Path("../shared"), help="holds data/tofu and models/stories260K")
    parser.add_argument("--cache", type=Path, default=Path(".bench"), help="keeps trained adapters (default: .bench)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row there, as soon as it is measured")
    return parser.parse_args(arguments)


def write(path: Path, table: Sequence[Mapping[str, Any]], arguments: argparse.Namespace) -> None:
    """Every row so far, with what they were measured on."""
    machine = {"processor": platform.machine(), "threads": arguments.threads, "torch": torch.__version__}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "seeds": arguments.seeds, "rows": table}, indent=1) + "\n")


def main() -> None:
    """Measure, print a line per method as it is done, and write the rows."""
    arguments = parse()
    worlds.quiet()
    if arguments.steps:
        BUDGET.update(dict.fromkeys(BUDGET, arguments.steps))
    table: list[dict[str, Any]] = []
    with worlds.threads(arguments.threads):
        for world in chosen_worlds(arguments):
            bench = Bench(world)
            sizes = f"{len(world.forget)} to forget, {len(world.retain)} to keep"
            print(f"{world.name}: {sizes}, at most {BUDGET[world.name]} steps")
            print(describe("source", bench.source), describe("control", bench.control), HEADER, sep="\n", flush=True)
            for row in rows(bench, arguments.losses, arguments.combiners, arguments.seeds):
                table.append(row)
                if arguments.json:
                    write(arguments.json, table, arguments)
                group = list(grouped(table))[-1]
                if len(group) == len(arguments.seeds):
                    print(line(group), flush=True)


if __name__ == "__main__":
    main()
