"""The import contracts name every part of the house, so that a new one cannot be forgotten."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CONTRACTS = {
    contract["name"]: contract
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}


def parts(package: str) -> set[str]:
    """The modules and packages directly inside a package."""
    found = [path for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    return {f"{package}.{path.stem}" for path in found} - {f"{package}.__init__"}


def test_the_kit_may_import_no_other_part_of_the_app() -> None:
    forbidden = set(CONTRACTS["the kit knows no domain word"]["forbidden_modules"])
    assert parts("app") - {"app.kit"} == forbidden


def test_the_libraries_may_import_no_part_of_the_service() -> None:
    forbidden = set(CONTRACTS["unlearning and evaluation are pure libraries"]["forbidden_modules"])
    # Packaging, its command and the choice of a device are no libraries, and know neither queue nor database.
    allowed = {"worker.unlearning", "worker.evaluation", "worker.packaging", "worker.reproduce", "worker.device"}
    assert parts("worker") - allowed == {name for name in forbidden if name.startswith("worker.")}
