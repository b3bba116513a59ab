"""What the demo shows at its end."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.demo.files import DemoFiles
from app.demo.measure import METRICS, SETS, Measurement

TITLES = {
    "probability": "answer probability",
    "extraction_strength": "extraction strength",
    "exact_memorisation": "exact memorisation",
    "rouge_l_recall": "ROUGE-L recall",
    "nll": "NLL per token",
}
SET_TITLES = {"forget": "Forgotten on request", "retain": "Kept"}


def show_answers(console: Console, measured: Mapping[str, Measurement]) -> None:
    """Questions with the answers before, after, and of an adapter that never saw the forgotten records."""
    for name in SETS:
        table = Table(title=SET_TITLES[name], title_justify="left", show_lines=True)
        for heading in ("question", "before", "after", "control, never saw the two"):
            table.add_column(heading, overflow="fold", ratio=1)
        answers = [measured[model]["answers"][name] for model in ("source", "result", "control")]
        # Several questions ask for the same fact; one row per fact shows more.
        facts = {row[0]["reference"]: row for row in reversed(list(zip(*answers, strict=True)))}
        for before, after, control in reversed(facts.values()):
            question = before["prompt"].removeprefix("Question: ").removesuffix("\nAnswer:")
            texts = (question, before["generated"], after["generated"], control["generated"])
            table.add_row(*(Text(text.strip()) for text in texts))
        console.print(table)


def show_metrics(console: Console, measured: Mapping[str, Measurement]) -> None:
    """Every metric of every model, as measured outside the service."""
    table = Table(title="Measured outside the service", title_justify="left")
    table.add_column("set")
    table.add_column("metric")
    for heading in ("before", "after", "control, never saw the two", "base alone"):
        table.add_column(heading, justify="right")
    for name in SETS:
        for metric in METRICS:
            models = ("source", "result", "control", "base")
            values = [f"{measured[model]['sets'][name][metric]:.4f}" for model in models]
            table.add_row(name if metric == METRICS[0] else "", TITLES[metric], *values)
        table.add_section()
    console.print(table)


def show_resurfacing(console: Console, measured: Mapping[str, Measurement]) -> None:
    """What the forgotten records' answers come to when each adapter goes on training on kept records alone."""
    training = measured["source"]["trained"]
    title = f"Do they come back? Further training on kept records alone, {training['epochs']} epochs"
    table = Table(title=title, title_justify="left")
    for heading in ("forgotten on request", "before", "after", "control, never saw the two"):
        table.add_column(heading, justify="left" if heading == "forgotten on request" else "right")
    for metric in ("probability", "extraction_strength"):
        of = [measured[model] for model in ("source", "result", "control")]
        for words, scores in (
            (TITLES[metric], [model["sets"]["forget"][metric] for model in of]),
            ("  once trained further", [model["trained"]["sets"]["forget"][metric] for model in of]),
        ):
            table.add_row(words, *(f"{score:.4f}" for score in scores))
    console.print(table)


def show_checks(console: Console, gate: Mapping[str, Any]) -> None:
    """The gate's verdict with the thresholds."""
    table = Table(title=f"Gate: {gate['verdict']}", title_justify="left")
    for heading in ("check", "value", "threshold", "outcome"):
        table.add_column(heading)
    for check in gate["checks"]:
        value = "not measured" if check["value"] is None else f"{check['value']:.4f}"
        outcome = Text("passed", "green") if check["passed"] else Text("failed", "bold red")
        table.add_row(check["description"], value, f"{check['comparison']} {check['limit']:g}", outcome)
    console.print(table)


def show_times(console: Console, times: Mapping[str, float]) -> None:
    """Seconds per phase."""
    table = Table(title="Time", title_justify="left")
    table.add_column("phase")
    table.add_column("seconds", justify="right")
    for name, seconds in times.items():
        table.add_row(name, f"{seconds:.1f}")
    console.print(table)


def show_place(console: Console, archive: Path, folder: Path, files: DemoFiles) -> None:
    """Where the result lies and how to load it."""
    console.print(f"\nThe unlearned adapter: {folder}\nThe archive as released: {archive}\n")
    console.print("Load it with PEFT:\n")
    lines = (
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'base = AutoModelForCausalLM.from_pretrained("{files.base}")',
        f'model = PeftModel.from_pretrained(base, "{folder}")',
    )
    console.print(Text("\n".join(f"    {line}" for line in lines)))


def show_proof(console: Console, page: Path, archive: Path, keys: Path) -> None:
    """Where the report lies, and how to check the release again without the service."""
    console.print(f"\nThe report, for a browser or a printer: {page}\n\nVerify the release offline:\n")
    console.print(Text(f"    lethe verify {archive} --keys {keys}"), soft_wrap=True)
