"""Makefile, Dockerfile and the check script do what the documents say."""

import hashlib
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
TARGETS = (
    "help", "demo", "test", "test-slow", "docs", "lint", "types", "imports", "check", "format", "install", "clean",
)  # fmt: skip


def make(*arguments: str, directory: Path = ROOT, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs make; `path` replaces PATH."""
    environment = {**os.environ, **({"PATH": path} if path else {})}
    environment = {name: value for name, value in environment.items() if not name.startswith("MAKE")}
    command = ["/usr/bin/env", "make", *arguments]
    return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_exists(target: str) -> None:
    result = make("--dry-run", target)
    assert result.returncode == 0, result.stderr


def test_help_lists_every_target() -> None:
    shown = make("help").stdout
    assert all(re.search(rf"^  make {target} ", shown, re.MULTILINE) for target in TARGETS)


def test_an_old_python_is_refused_with_a_clear_message(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    tools = tmp_path / "bin"
    tools.mkdir()
    old = tools / "python3"
    old.write_text("#!/bin/bash\nexit 1\n")
    old.chmod(0o755)
    for tool in ("make", "bash"):
        found = subprocess.run(["/bin/sh", "-c", f"command -v {tool}"], capture_output=True, text=True, check=True)
        (tools / tool).symlink_to(found.stdout.strip())
    result = make("install", directory=tmp_path, path=str(tools))
    assert result.returncode != 0
    assert "needs Python 3.11 or newer" in result.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("broken", ["test", "lint", "types", "imports", None])
def test_the_check_script_fails_when_any_phase_fails(tmp_path: Path, broken: str | None) -> None:
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_text((ROOT / ".ci" / "run").read_text())
    script.chmod(0o755)
    rules = [
        f"{name}:\n\t@{'false' if name == broken else 'true'}\n" for name in ("test", "lint", "types", "imports")
    ]
    (tmp_path / "Makefile").write_text(".PHONY: test lint types imports\n" + "".join(rules))
    result = subprocess.run([str(script)], capture_output=True, text=True, check=False)
    assert (result.returncode == 0) == (broken is None)
    assert result.stdout.count("===") >= 8


def test_the_check_script_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("target", ["api", "worker"])
def test_each_image_drops_root_and_tells_its_health(target: str) -> None:
    stage = next(part for part in DOCKERFILE.split("\nFROM ") if part.startswith(f"base AS {target}\n"))
    assert "\nUSER lethe\n" in stage
    assert "\nHEALTHCHECK " in stage
    # The exec form: a shell as process 1 would swallow the stop signal.
    assert "\nCMD [" in stage


def test_the_api_image_holds_neither_torch_nor_worker() -> None:
    stage = next(part for part in DOCKERFILE.split("\nFROM ") if part.startswith("base AS api\n"))
    assert "COPY worker" not in stage
    assert "--from=api-libraries" in stage


def test_images_pin_their_base_and_their_libraries() -> None:
    assert re.findall(r"^FROM (?!base|requirements)(\S+)", DOCKERFILE, re.MULTILINE) == ["python:3.11-slim-bookworm"]
    installs = re.findall(r"pip install (.*)", DOCKERFILE)
    assert all("--constraint constraints.txt" in line or "--no-deps" in line for line in installs)


def test_the_build_context_is_a_list_of_what_goes_in() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert rules[0] == "*"
    copied = {
        word for line in re.findall(r"^COPY ((?!--).*) \S+$", DOCKERFILE, re.MULTILINE) for word in line.split()
    }
    assert copied == {rule.removeprefix("!") for rule in rules[1:] if rule.startswith("!")}


def test_the_licence_is_the_unchanged_apache_licence() -> None:
    digest = hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest()
    assert digest == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def test_every_decision_has_the_five_headings() -> None:
    decisions = sorted((ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert decisions
    for path in decisions:
        headings = re.findall(r"^## (.*)$", path.read_text(), re.MULTILINE)
        assert headings == ["Context", "Decision", "Consequences", "Alternatives", "References"], path.name


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").iterdir()), ids=lambda path: path.name)
def test_results_name_no_place_of_the_machine_that_measured_them(path: Path) -> None:
    assert re.findall(r'["\s](?:/[\w.-]+){2,}', path.read_text()) == []
