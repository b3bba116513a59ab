"""The demo's own arithmetic: what counts as reproduced, what may be reused."""

import math
from pathlib import Path
from typing import Any

import pytest

from app.demo.files import DemoFiles
from app.demo.measure import METRICS, SETS, TOLERANCE, Target, largest_difference, output_path

MODELS = ("source", "result", "base")


@pytest.fixture
def files(tmp_path: Path) -> DemoFiles:
    """A complete example folder with tiny stand-ins."""
    for name in ("base", "adapter", "control", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "base" / "weights").write_text("base")
    (tmp_path / "adapter" / "weights").write_text("adapter")
    for name in ("forget", "retain", "holdout"):
        (tmp_path / "data" / f"{name}.jsonl").write_text(name)
    return DemoFiles(tmp_path)


def numbers(value: float) -> dict[str, dict[str, float]]:
    """Every metric of every set."""
    return {name: dict.fromkeys(METRICS, value) for name in SETS}


def reported() -> dict[str, Any]:
    """An evaluation whose every number is 0.5."""
    return {"models": {model: numbers(0.5) for model in MODELS}}


def measured() -> dict[str, Any]:
    """The same numbers as the measurements give them."""
    return {model: {"sets": numbers(0.5)} for model in MODELS}


def test_equal_numbers_reproduce() -> None:
    assert largest_difference(reported(), measured()) == 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("metric", METRICS)
def test_one_number_off_is_found(model: str, name: str, metric: str) -> None:
    ours = measured()
    ours[model]["sets"][name][metric] += 2 * TOLERANCE
    assert largest_difference(reported(), ours) > TOLERANCE


def test_a_number_that_is_none_never_reproduces() -> None:
    ours = measured()
    ours["result"]["sets"]["forget"]["nll"] = math.nan
    assert largest_difference(reported(), ours) == math.inf


def test_a_measurement_is_reused_only_while_its_files_are_the_same(files: DemoFiles, tmp_path: Path) -> None:
    target = Target("source", files.adapter, reusable=True)
    before = output_path(target, files, tmp_path)
    assert output_path(target, files, tmp_path) == before
    (files.adapter / "weights").write_text("another")
    changed = output_path(target, files, tmp_path)
    files.records("forget").write_text("other records")
    assert len({before, changed, output_path(target, files, tmp_path)}) == 3
