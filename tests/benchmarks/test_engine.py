"""The engine's benchmark runs, agrees with itself, and writes what its readers look for. Never how fast it was."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from benchmarks import engine
from benchmarks.engine_models import build_case
from benchmarks.engine_variants import TWO_PASSES, VARIANTS, build_variant

CPU = torch.device("cpu")
HEADLINE = {"time_ratio_to_weighted_sum", "memory_ratio_to_weighted_sum", "speedup_over_reference"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("engine") / "result.json"
    engine.main(["--quick", "--models", "llama-40m", "--json", str(path)])
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def test_the_file_holds_the_three_ratios(report: dict[str, Any]) -> None:
    assert set(report) == {"models", "machine", "command"}
    assert set(report["models"]) == {"llama-40m"}
    result = report["models"]["llama-40m"]
    assert set(result) >= HEADLINE
    assert all(result[key] > 0 for key in HEADLINE)


def test_every_variant_has_its_times_and_was_compared(report: dict[str, Any]) -> None:
    variants = report["models"]["llama-40m"]["variants"]
    assert tuple(variants) == VARIANTS
    assert all(row["ms_per_step"] > 0 for row in variants.values())
    assert sum("difference_of_update" in row for row in variants.values()) == 3
    assert all(row.get("difference_of_update", 0) <= 1e-4 for row in variants.values())


def test_every_bar_is_judged(report: dict[str, Any]) -> None:
    bars = report["models"]["llama-40m"]["bars"]
    assert set(bars) == HEADLINE
    assert all(verdict.endswith((": met", ": missed")) for verdict in bars.values())


def test_the_file_tells_what_the_numbers_depend_on(report: dict[str, Any]) -> None:
    assert {"cpu", "threads", "torch", "device"} <= set(report["machine"])
    assert report["command"].startswith("python -m benchmarks.engine --models llama-40m --steps 3 ")
    assert "/" not in report["command"]


def test_a_wrong_step_is_not_timed() -> None:
    case = build_case("llama-40m", device=CPU, seed=0, quick=True)
    with ExitStack() as stack:
        variants = {name: build_variant(name, case, stack) for name in VARIANTS}
        engine.agree(case, variants)
        variants[TWO_PASSES].step(*case.batch(0))
        with pytest.raises(SystemExit, match="llama-40m: updates differ"):
            engine.agree(case, variants)


def test_half_precision_variants_agree() -> None:
    case = build_case("llama-1b", device=CPU, seed=0, quick=True)
    with ExitStack() as stack:
        engine.agree(case, {name: build_variant(name, case, stack) for name in VARIANTS})


@pytest.mark.parametrize("arguments", [["--models", "gpt"], ["--steps"], ["--what"]])
def test_a_wrong_call_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        engine.parse(arguments)
    assert "usage:" in capsys.readouterr().err
