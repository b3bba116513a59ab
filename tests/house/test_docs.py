"""What can be set, called or asked for is written down."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer.main

from app.audit.actions import ACTIONS, Action
from app.audit.chain import Kind
from app.cli import app as command_line
from app.kit.problems import Problem
from app.main import create_app
from app.methods import FORGET_LOSSES, METHOD_REQUESTS, RETAIN_LOSSES, STOP_RULES, Policy
from app.methods.reference import reference
from app.problems.codes import CODES
from app.problems.reference import reference as problems_page
from app.settings import Settings

ROOT = Path(__file__).parents[2]
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}
CALLS = (ROOT / "docs/api/calls.md").read_text()
SETTINGS = Settings(
    database_url="postgresql+psycopg://x", redis_url="redis://x", storage_dir=Path("x"),
    encryption_keys="k:" + "A" * 43 + "=", key_pepper="A" * 43 + "=",
)  # fmt: skip


def operations() -> Iterator[tuple[str, str]]:
    """Every (method, path) of the API."""
    for path, methods in create_app(SETTINGS).openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_in_the_operations_guide(name: str) -> None:
    assert f"`LETHE_{name.upper()}`" in DOCS["operations.md"]


def test_the_operations_guide_names_no_setting_that_is_not_there() -> None:
    client_side = {"LETHE_URL", "LETHE_API_KEY"}
    named = set(re.findall(r"LETHE_[A-Z_]+", DOCS["operations.md"])) - client_side
    assert named == {f"LETHE_{name.upper()}" for name in Settings.model_fields}


def test_every_call_is_in_the_api_guide() -> None:
    missing = [f"{method} {path}" for method, path in operations() if f"`{method} {path}" not in CALLS]
    assert missing == []


def test_the_api_guide_names_the_scopes_of_every_call() -> None:
    rows = [re.split(r" \| ", line.strip("| ")) for line in CALLS.splitlines() if line.startswith("| `")]
    for path, methods in create_app(SETTINGS).openapi()["paths"].items():
        for method, operation in methods.items():
            needs = " or ".join(f"`{scope}`" for need in operation.get("security", []) for scope in need["ApiKey"])
            call = re.compile(rf"`{method.upper()} {re.escape(path)}[`?]")
            assert [row[1] for row in rows if call.search(row[0])] == [needs or "none"], (method, path)


def kinds_of_problems(kind: type[Problem] = Problem) -> Iterator[type[Problem]]:
    """Every kind of problem in the application, which is loaded as a whole."""
    yield kind
    for narrower in kind.__subclasses__():
        yield from kinds_of_problems(narrower)


def test_every_kind_of_problem_has_a_page() -> None:
    kinds = [kind for kind in kinds_of_problems() if kind.__module__.startswith("app.")]
    assert len(kinds) > 9
    for kind in kinds:
        assert kind.code in CODES, f"{kind.__name__}: add {kind.code!r} to app/problems/codes.py"
        assert CODES[kind.code].status == kind.status, kind


def test_every_code_of_a_failed_job_has_a_page() -> None:
    sources = [*(ROOT / "worker").glob("*.py"), ROOT / "app/jobs/deciding.py"]
    source = "".join(path.read_text() for path in sources)
    codes = set(re.findall(r'JobError\(\s*"([a-z_]+)"', source)) | set(re.findall(r'"code": "([a-z_]+)"', source))
    codes |= set(re.findall(r'Error: "([a-z_]+)"', source)) | set(re.findall(r'_fail\(lease, "([a-z_]+)"', source))
    assert len(codes) > 8
    assert codes == {code.code for code in CODES.values() if code.of_jobs}


def test_the_page_of_codes_is_the_one_that_the_registry_gives() -> None:
    assert (ROOT / "docs/api/problems.md").read_text() == problems_page(), "run `make docs`"


def test_the_page_of_knobs_is_the_one_that_the_schemas_give() -> None:
    assert DOCS["losses.md"] == reference(), "docs/losses.md is out of date: run `make docs`"


@pytest.mark.parametrize("members", [METHOD_REQUESTS, FORGET_LOSSES, RETAIN_LOSSES, STOP_RULES])
def test_every_type_and_its_knobs_are_on_the_page_of_knobs(members: dict[str, Any]) -> None:
    sections = {part.split("`", 1)[0]: part for part in DOCS["losses.md"].split("\n### `")[1:]}
    shared = DOCS["losses.md"].split("## Knobs of every method")[1].split("\n## ")[0]
    for name, kind in members.items():
        page = sections[name] + (shared if members is METHOD_REQUESTS else "")
        assert kind.__doc__.split()[0] in page
        assert [knob for knob in set(kind.model_fields) - {"type"} if f"| `{knob}` |" not in page] == []


def test_every_threshold_is_in_the_evaluation_guide() -> None:
    thresholds = set(Policy.model_fields) - {"name", "version"}
    assert [name for name in thresholds if f"`{name}`" not in DOCS["evaluation.md"]] == []


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its name, those of groups included."""
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        yield from [(prefix + name, command)] if inner is None else commands(command, f"{prefix}{name} ")


def test_every_command_and_option_is_in_the_command_line_guide() -> None:
    guide = DOCS["cli.md"]
    # typer carries its own click, so the type is left open.
    group: Any = typer.main.get_command(command_line)
    found = list(commands(group))
    assert len(found) > 10
    for name, command in found:
        assert f"`lethe {name}" in guide, name
        for parameter in command.params:
            option = next((text for text in parameter.opts if text.startswith("--")), None)
            assert option is None or f"`{option}`" in guide, (name, option)


def test_every_action_and_finding_of_the_audit_chain_is_in_its_guide() -> None:
    assert set(get_args(Action)) == set(ACTIONS)
    for words in (get_args(Action), get_args(Kind)):
        assert [word for word in words if f"| `{word}` |" not in DOCS["audit.md"]] == []


def test_every_action_of_the_audit_chain_is_recorded_somewhere() -> None:
    sources = [path for part in ("app", "worker") for path in (ROOT / part).rglob("*.py")]
    code = "".join(path.read_text() for path in sources if path.name != "actions.py")
    assert [action for action in ACTIONS if f'"{action}"' not in code] == []


PAGES = {path: path.read_text() for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]}


def anchors(page: str) -> set[str]:
    """What a link into a page may name after the #, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_documents_lead_somewhere() -> None:
    for path, text in PAGES.items():
        for target, _, anchor in (link.partition("#") for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text)):
            leads_to = (path.parent / target).resolve() if target else path
            assert leads_to.exists(), (path.name, target)
            assert not anchor or anchor in anchors(leads_to.read_text()), (path.name, target, anchor)


def test_every_page_of_the_http_interface_is_in_its_table() -> None:
    overview = (ROOT / "docs/api/README.md").read_text()
    pages = {path.name for path in (ROOT / "docs/api").iterdir()} - {"README.md"}
    assert {page for page in pages if f"]({page})" not in overview} == set()
