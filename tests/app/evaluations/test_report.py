"""The page: what it says, that it says nothing of its own, and that it is sound."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from app.evaluations.report import HEADERS, report
from app.evaluations.report.advice import advice
from app.evaluations.report.page import STYLE
from app.methods import POLICIES, PROBES, Recipe, RetrainRequest
from tests.app.evaluations.documents import Json, check, evaluation, job, measure, old_evaluation, read
from tests.app.evaluations.html import Node, check_pictures, check_references, check_tables, parse

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=y>{{ 7*7 }}&lt;"
KNOWN_TAGS = {
    "html", "head", "meta", "title", "style", "body", "header", "main", "section", "nav", "footer", "a", "p", "h1",
    "h2", "h3", "ul", "li", "dl", "dt", "dd", "div", "span", "b", "strong", "em", "small", "code", "time", "table",
    "caption", "colgroup", "col", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "details", "summary",
    "svg", "desc", "path", "line", "rect", "circle", "text",
}  # fmt: skip
DOCUMENTS: dict[str, Callable[[], Json]] = {
    "passed": lambda: evaluation(),
    "failed": lambda: evaluation(passed=False),
    "no control": lambda: evaluation(control=False),
    "no holdout": lambda: evaluation(holdout=False),
    "one record": lambda: evaluation(sizes={"forget": 1, "retain": 1, "holdout": 1}),
    "fresh": lambda: evaluation(control=False) | {"source_version": None, "reference": None},
    "version 0.1": old_evaluation,
    "bare": lambda: bare(),
    "extreme": lambda: extreme(),
}


def bare() -> Json:
    """As little as a document may hold."""
    document = old_evaluation()
    document["gate"] = {"verdict": "failed", "checks": []}
    return document | {"warnings": [], "not_tested": [], "training": None, "records": None}


def extreme() -> Json:
    """Numbers at the edges of what the document allows."""
    document = evaluation(passed=False)
    for place, row in enumerate(document["records"]["forget"]):
        for model in ("base", "source", "control", "result"):
            row[model] = {"probability": float(place % 2), "nll": 0.0 if place else 1e300, "extraction_strength": 1.0}
    for row in document["records"]["retain"]:
        row["result"] = {"probability": 0.0, "nll": 0.0, "extraction_strength": 0.0}
    document["gate"]["checks"] += [
        check("recall", "huge", 1.7e308, 0.0, "<=", 0, low=-1e308, high=1e308),
        check("utility", "negative", -1e308, 1.0, ">=", 10**9),
        check("history", "zero", 0.0, 0.0, "<=", 1, low=0.0, high=0.0),
        check("relearning", "nothing", None, 0.5, "<=", 0),
    ]
    document["probes"][7]["measures"].append(measure("resurfaced_surprise", "control", -7.5, 3, detail="other"))
    document["training"]["probes"] = [
        document["training"]["probes"][0] | {"step": step, "retain_ratio": 1e9 if step == 5 else 0.0}
        for step in range(3000)
    ]
    return document


def page(document: Json, **about: Any) -> str:
    """The report on a document."""
    return report(read(document), job(**{"passed": document["gate"]["verdict"] == "passed"} | about))


@pytest.fixture(params=DOCUMENTS)
def any_page(request: pytest.FixtureRequest) -> str:
    """A report of every kind of document."""
    about = {"base_model": "acme/base-1b", "lora": {}} if request.param == "fresh" else {}
    return page(DOCUMENTS[request.param](), **about)


def rows(root: Node) -> Iterator[str]:
    """The words of every table's rows."""
    return (row.text for row in root.all("tr"))


def row_with(root: Node, *words: str) -> str:
    """The row that says all of these."""
    found = [row for row in rows(root) if all(word in row for word in words)]
    assert found, words
    return found[0]


def three(value: float) -> str:
    """With three decimals and a true minus, as the page prints numbers of ordinary size."""
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def test_the_page_is_well_formed(any_page: str) -> None:
    root = parse(any_page.removeprefix("<!DOCTYPE html>"))
    check_references(root)
    check_tables(root)
    assert check_pictures(root) >= any_page.count('class="bullet"')
    assert any_page.startswith("<!DOCTYPE html>\n<html lang=")
    headings = [int(node.tag[1]) for node in root.every() if node.tag in {"h1", "h2", "h3"}]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(following - level <= 1 for level, following in itertools.pairwise(headings))
    assert "None" not in root.text
    assert "nan" not in root.text.lower().split()


def test_the_page_asks_for_nothing_outside_of_itself(any_page: str) -> None:
    root = parse(any_page)
    assert {node.tag for node in root.every()} - {"#document"} <= KNOWN_TAGS
    for node in root.every():
        assert not {"src", "srcset", "style", "action", "data", "xlink:href", "poster"} & set(node.attributes), (
            node.tag
        )
        assert not [name for name in node.attributes if name.startswith("on")], node.tag
    assert "url(" not in any_page
    assert "@import" not in any_page
    assert "http" not in re.sub(r"<meta[^>]*>", "", any_page)


def test_the_policy_for_its_content_admits_the_style_of_the_page_and_nothing_else(any_page: str) -> None:
    styles = re.findall(r"<style>(.*?)</style>", any_page, re.DOTALL)
    assert len(styles) == any_page.count("<style") == 1
    digest = base64.b64encode(hashlib.sha256(styles[0].encode()).digest()).decode()
    directives = dict(part.split(maxsplit=1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert directives.pop("style-src") == f"'sha256-{digest}'"
    assert set(directives) == {"default-src", "base-uri", "form-action", "frame-ancestors"}
    assert set(directives.values()) == {"'none'"}


def hostile(value: Any, key: str = "") -> Any:
    """The same document with every free text turned into an attack."""
    if isinstance(value, dict):
        return {name: each if name in {"method", "policy"} else hostile(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [hostile(each, key) for each in value]
    fixed = {"verdict", "comparison", "probe", "model", "cost", "reason", "reference"}
    fixed |= {"name"} if value in PROBES else set()
    return HOSTILE if isinstance(value, str) and key not in fixed else value


def test_whatever_a_document_or_a_job_says_is_text(any_page: str) -> None:
    for document in (hostile(evaluation(passed=False)), hostile(evaluation())):
        attacked = page(
            document, adapter=HOSTILE, subject_request_id=HOSTILE, metadata={HOSTILE: HOSTILE}, forget_set=HOSTILE,
            retain_set=HOSTILE, holdout_set=HOSTILE,
        )  # fmt: skip
        root = parse(attacked)
        assert {node.tag for node in root.every()} - {"#document"} <= KNOWN_TAGS
        assert not [node for node in root.every() if {"onerror", "src"} & set(node.attributes)]
        check_references(root)
        assert root.text.count(HOSTILE) > 30
        assert "alert(1)" not in re.sub(r"&lt;script&gt;alert\(1\)", "", attacked)


@pytest.mark.parametrize("passed", [True, False])
def test_every_check_is_shown_with_all_of_its_numbers(passed: bool) -> None:
    document = evaluation(passed=passed)
    root = parse(page(document))
    for each in document["gate"]["checks"]:
        row = row_with(root, each["name"], "Passed" if each["passed"] else "Failed")
        assert each["description"][1:] in row
        assert f"{'≤' if each['comparison'] == '<=' else '≥'} {each['limit']:g}" in row
        assert f" {each['records']} " in row
        if each["value"] is None:
            assert "not measured" in row
        elif each["name"] == "integrity_violations":
            assert " 0 ≤ 0 0.000 28 " in row, "a number of things has no decimals"
        else:
            assert three(each["value"]) in row
            assert three(each["margin"]) in row
        if each["low"] is not None:
            assert f"{three(each['low'])} to {three(each['high'])}" in row


def test_checks_stand_below_the_question_of_their_probe() -> None:
    document = evaluation()
    root = parse(page(document))
    shown = {
        next(section.all("h3")).text: [code.text for code in section.all("code")]
        for section in next(node for node in root.every() if node.attributes.get("id") == "checks").all("section")
    }
    for probe in document["probes"]:
        assert shown[probe["title"]] == [
            each["name"] for each in document["gate"]["checks"] if each["probe"] == probe["name"]
        ]


def test_every_measure_is_shown_with_its_interval_and_variant() -> None:
    document = evaluation()
    root = parse(page(document))
    section = next(node for node in root.every() if node.attributes.get("id") == "measures")
    for probe in document["probes"]:
        part = next(node for node in section.every() if node.attributes.get("id") == f"measure-{probe['name']}")
        for each in probe["measures"]:
            value = "0" if each["name"] == "integrity_violations" else three(each["value"])
            row = row_with(part, value, each.get("detail", ""), str(each["records"]))
            if each["low"] is not None:
                assert f"{three(each['low'])} to {three(each['high'])}" in row
        assert probe["measured"] or f"Not applicable: {probe['note']}." in part.text


def test_means_before_and_after_are_shown_for_every_model_and_set() -> None:
    document = evaluation()
    root = parse(page(document))
    tables = [table for table in root.all("table") if table.attributes.get("class") == "means"]
    assert [next(table.all("tr")).text for table in tables] == ["Base alone Before Control After"] * 3
    for table, name in zip(tables, ("forget", "retain", "holdout"), strict=True):
        models = [document["models"][model][name] for model in ("base", "source", "control", "result")]
        metrics = ("probability", "nll", "extraction_strength", "exact_memorisation", "rouge_l_recall")
        for words, metric in zip(("Answer", "NLL", "Extraction", "Exact", "ROUGE"), metrics, strict=True):
            assert row_with(table, words).endswith(" ".join(three(each[metric]) for each in models))
        assert row_with(table, "Records").split()[1:] == [str(each["records"]) for each in models]


def test_distributions_are_told_in_words_too() -> None:
    document = evaluation(sizes={"forget": 1})
    score = document["records"]["forget"][0]["result"]["probability"]
    root = parse(page(document))
    described = [each.text for each in root.all("desc")]
    assert any(f"After: one record, {three(score)}" in words for words in described)
    assert any("median" in words and "nine in ten between" in words for words in described)


def test_single_records_are_shown_by_their_number() -> None:
    document = evaluation()
    root = parse(page(document))
    details = [each for each in root.all("details") if each.attributes.get("class") == "records"]
    assert [next(each.all("summary")).text for each in details] == [
        "Forget set: 40 records", "Retain set: 200 records", "Holdout set: 60 records"
    ]  # fmt: skip
    lines = [row for row in rows(details[0]) if row[0].isdigit()]
    assert len(lines) == 40
    for line, row in zip(lines, document["records"]["forget"], strict=True):
        source, result = row["source"], row["result"]
        wanted = [
            source["probability"],
            result["probability"],
            row["base"]["probability"],
            row["control"]["probability"],
        ]
        wanted += [source["nll"], result["nll"], source["extraction_strength"], result["extraction_strength"]]
        assert line.split() == [str(row["record"]), *map(three, wanted)]


def test_of_very_many_records_those_that_matter_are_shown_and_the_cut_is_stated() -> None:
    document = evaluation(sizes={"forget": 10_000, "retain": 10_000, "holdout": 10_000})
    document["records"]["forget"][7_776]["result"]["probability"] = 0.987
    document["records"]["retain"][4_321]["result"]["probability"] = 0.001
    text = page(document)
    assert len(text.encode()) < 1_000_000
    root = parse(text)
    forget, retain, _ = (each for each in root.all("details") if each.attributes.get("class") == "records")
    assert "The 400 records that are still known best; 9,600 others are left out here" in forget.text
    assert "The 150 records that lost most; 9,850 others are left out here" in retain.text
    assert "0.987" in row_with(forget, "7777 ")
    row_with(retain, "4322 ")
    numbers = [int(row.split()[0]) for row in rows(forget) if row[0].isdigit()]
    assert numbers == sorted(numbers)


def test_a_battery_of_very_many_measures_is_cut_and_says_so() -> None:
    document = evaluation()
    document["probes"][6] |= {
        "measured": True,
        "measures": [
            measure("history_probability", "result", 0.1, 9, detail=f"job_{place}") for place in range(1000)
        ],
    }
    text = page(document)
    assert "850 more rows in the JSON" in text
    assert text.count("Earlier forget set: answer probability") == 150


def test_training_is_shown_with_every_look_and_the_stop() -> None:
    document = evaluation()
    training = document["training"]
    root = parse(page(document))
    assert training["explanation"] in root.text
    for probe in training["probes"]:
        fields = ("forget_probability", "forget_extraction_strength", "retain_probability", "retain_ratio")
        row_with(root, str(probe["step"]), *(three(probe[name]) for name in fields), "40 + 64")
    assert "kept" in row_with(root, "160", three(training["probes"][8]["forget_probability"]))
    assert len([each for each in root.all("text") if each.text == "kept: step 160"]) == 2
    targets = [each.text for each in root.all("text") if "target" in each.text]
    assert [words.rsplit(" ", 1)[1] for words in targets] == ["0.1)", "0.04)", "0.98)"]


def test_every_training_of_the_run_is_shown_with_what_it_missed() -> None:
    root = parse(page(evaluation()))
    assert row_with(root, "as asked for", "240 of 240", "Failed", "forget_probability", "rephrased_probability")
    assert row_with(root, "gamma doubled", "gamma 1", "180 of 240", "Passed")
    assert "It was trained 2 times" in root.text


def test_the_whole_configuration_is_shown() -> None:
    document = evaluation()
    root = parse(page(document))
    section = next(node for node in root.every() if node.attributes.get("id") == "configuration")
    knobs = [name for name in document["method"] if not isinstance(document["method"][name], dict)]
    knobs += [
        "forget_loss.type",
        "forget_loss.beta",
        "retain_loss.type",
        "schedule.type",
        "stop.every",
        "stop.patience",
        "seed",
    ]
    for name in [*knobs, *(set(document["policy"]) - {"name", "version", "description"})]:
        row_with(section, f"{name} ")
    assert "0.0005" in row_with(section, "learning_rate ")
    assert "7041" in row_with(section, "seed")
    assert "0.85" in row_with(section, "min_neighbour_probability_ratio")
    words = ["NVIDIA H200", "3.11.9", "2.13.0", "5.23.0", "0.21.2", "0.3.0", "4.2 s", "6 min", "2 h 32 min"]
    words += [document["result_weights_sha256"], "privacy desk 12", "dsr-2026-0042", "run_77aa00c1d2e3f4a5b6c7d8e9"]
    assert [word for word in words if word not in section.text] == []


def test_a_limit_that_is_not_judged_says_so() -> None:
    document = evaluation()
    document["policy"]["max_sampled_leak"] = None
    assert "not judged" in row_with(parse(page(document)), "max_sampled_leak")


def test_the_verdict_comes_first_and_in_plain_words() -> None:
    root = parse(page(evaluation()))
    first, opening = next(root.all("section")), root.text[:2500]
    assert first.attributes["id"] == "verdict"
    for words in (
        "Passed: all 14 checks hold.",
        "released as version 4 of support-bot",
        "To remove 40 records from version 3",
        "Requested on 3 March 2026, due by 3 April 2026. Reference of the request: dsr-2026-0042.",
        "180 of at most 240 steps",
        "mean probability of 0.921 before and gives them 0.049 now",
        "An adapter that never saw them gives them 0.066",
        "40 forget records, all that were asked for. For comparison 200 retain and 60 holdout records",
        "It is no proof that every trace is gone",
    ):
        assert words in first.text
        assert words in opening
    assert not list(first.all("table"))


def test_a_failed_gate_says_in_words_which_checks_failed_and_what_to_change() -> None:
    document = evaluation(passed=False)
    root = parse(page(document))
    verdict = next(root.all("section")).text
    assert "Failed: 4 of 14 checks do not hold." in verdict
    assert "Nothing was released." in verdict
    assert "Mean answer probability on the forget set after unlearning: 0.312, must be at most 0.2." in verdict
    assert "after unlearning divided by before: 0.829, must be at least 0.9." in verdict
    assert "Share of records with a leak among 16 sampled answers: could not be measured" in verdict
    assert "must be at most 0.1." not in verdict, "a check that passed is among those that failed"
    assert "What to change" in root.text
    assert "What to change" not in page(evaluation())


CAUSES = (
    (("recall", "forget_probability"), "Too much of the forget set is left"),
    (("recall", "forget_nll_excess"), "The forget set is now too little known"),
    (("utility", "retain_probability_ratio"), "Too much was lost of what was to be kept"),
    (("rephrasing", "rephrased_probability"), "The records still answer to other wordings"),
    (("quantization", "quantized_probability"), "Rounding the weights brings the records back"),
    (("integrity", "integrity_violations"), "The packaged files are not what they should be"),
    (("history", "history_probability"), "Records came back that an earlier request had removed"),
    (("resurfacing", "resurfaced_probability"), "The forgetting does not last"),
    (("sampling", "sampled_leak"), "Too much of the forget set is left"),
    (("relearning", "relearned_excess"), "The forgetting does not last"),
)


@pytest.mark.parametrize(("failing", "cause"), CAUSES)
def test_advice_follows_from_the_check_that_failed(failing: tuple[str, str], cause: str) -> None:
    document = evaluation()
    document["gate"] = {"verdict": "failed", "checks": [check(*failing, 9.0, 1.0, "<=", 5)]}
    assert [piece.cause for piece in advice(read(document))] == [cause]


def test_every_probe_has_advice() -> None:
    assert {probe for (probe, _), _ in CAUSES} | {"membership"} == set(PROBES)


@pytest.mark.parametrize(
    ("difference", "anchor", "remedy"),
    [(-0.3, "none", "Set anchor to “base”"), (-0.3, "base", "Lower the learning rate"), (0.3, "base", "Raise gamma")],
)
def test_advice_on_membership_goes_by_the_direction(difference: float, anchor: str, remedy: str) -> None:
    document = evaluation()
    document["method"]["anchor"] = anchor
    document["gate"] = {
        "verdict": "failed",
        "checks": [check("membership", "membership_auc_distance", 0.3, 0.1, "<=", 5)],
    }
    document["probes"][3]["measures"] = [
        measure("membership_auc_difference", "result", value, 40) for value in (0.01, difference)
    ]
    (piece,) = advice(read(document))
    assert piece.remedies[0].startswith(remedy)


def test_advice_that_pulls_both_ways_says_so_first() -> None:
    assert advice(read(evaluation(passed=False)))[0].cause == "Two causes pull in opposite directions"
    assert advice(read(evaluation())) == []
    assert advice(read(bare()))[0].cause == "There was nothing to measure"


def test_the_risk_of_its_coming_back_is_shown_with_its_size() -> None:
    root = parse(page(evaluation()))
    section = next(node for node in root.every() if node.attributes.get("id") == "lasting")
    lines = [row.text for row in section.all("tr")][1:]
    assert len(lines) == 4 + 2, "a row per training and metric, none for before and none for the reference"
    row = row_with(section, "answer probability", "learning rate 0.0005, 75 steps")
    assert row.endswith("0.052 0.163 0.065 0.250 40")
    assert row_with(section, "a new adapter on top, 50 steps").endswith("0.048 0.118 0.106 — 20")
    assert (
        "further training, answer probability: from 0.052 to 0.163 at worst (learning rate 0.0005, 75 steps)."
        in section.text
    )
    assert "A model that never saw the records comes to 0.065 by the same training." in section.text
    assert "from 0.048 to 0.118 at worst (a new adapter on top, 50 steps)." in section.text
    assert "Trained on 20 records drawn by the seed." in section.text
    assert "was not measured" not in section.text
    assert "forgotten records was not measured: the policy does not ask" in page(evaluation(passed=False))


def test_a_probe_that_does_not_tell_what_was_before_is_compared_with_recall() -> None:
    document = evaluation()
    document["probes"][7]["measures"] = [measure("resurfaced_probability", "result", 0.163, 40, low=0.1, high=0.2)]
    section = next(node for node in parse(page(document)).every() if node.attributes.get("id") == "lasting")
    before = three(document["models"]["result"]["forget"]["probability"])
    assert f"{before} 0.163 0.100 to 0.200 — 0.250 40" in section.text


def test_a_risk_that_was_not_measured_is_said_to_be_so() -> None:
    for document in (old_evaluation(), bare()):
        assert "kept records alone was not measured: the policy does not ask for it." in parse(page(document)).text
    document = evaluation()
    document["probes"][7] |= {"measured": False, "measures": [], "note": "there are too few kept records"}
    assert "kept records alone was not measured: there are too few kept records." in parse(page(document)).text


def test_what_was_not_tested_and_warnings_are_shown() -> None:
    document = evaluation()
    root = parse(page(document))
    section = next(node for node in root.every() if node.attributes.get("id") == "not-tested")
    for words in document["not_tested"]:
        assert words[1:] in section.text
    assert "no records of earlier requests on this adapter are still held" in section.text
    document["not_tested"].append("history: no records of earlier requests on this adapter are still held")
    again = next(node for node in parse(page(document)).every() if node.attributes.get("id") == "not-tested")
    assert again.text.count("no records of earlier requests") == 1
    assert "Read with care The retain set covers 12 of the 31 topics" in root.text


def test_a_limit_that_is_the_references_own_value_is_not_rounded_past_the_value() -> None:
    document = evaluation(passed=False)
    document["gate"]["checks"] = [check("recall", "forget_probability", 0.20004, 0.200031, "<=", 40)]
    text = parse(page(document)).text
    assert "0.20004, must be at most 0.20003." in text


def test_an_old_document_tells_what_it_has() -> None:
    root = parse(page(old_evaluation()))
    assert "Passed: both checks hold." in root.text
    assert "there are means only" in root.text
    ids = {node.attributes.get("id") for node in root.every()}
    assert not {"training", "measures", "records"} & ids
    assert {"verdict", "checks", "before-after", "lasting", "not-tested", "configuration"} <= ids


def test_a_run_that_was_not_released_after_passing_says_so() -> None:
    text = page(evaluation(), result_version=None, status="cancelled")
    assert "No version has been released by this job; its status is cancelled." in text


def variables(css: str) -> dict[str, str]:
    """The colours that a block sets."""
    return dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{3,6})\b", css))


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * each for each in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark", "paper"])
def test_text_and_marks_can_be_told_from_what_they_stand_on(theme: str) -> None:
    light, dark, paper = (variables(block) for block in re.findall(r":root \{(.*?)\n *\}", STYLE, re.DOTALL))
    assert set(light) == set(dark) == set(paper)
    colours = {"light": light, "dark": dark, "paper": paper}[theme]
    for ground in ("paper", "raised", "passed-wash", "failed-wash", "care-wash"):
        for words in ("ink", "muted", "link", "passed", "failed", "care"):
            assert contrast(colours[words], colours[ground]) >= 4.5, (words, ground)
    for mark in ("base", "source", "control", "result", "failed"):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark
    for ground in ("track", "allowed"):
        assert contrast(colours["ink"], colours[ground]) >= 3, ground
    assert theme != "paper" or luminance(colours["paper"]) == 1, "paper has no background"


def test_colours_are_named_once_and_used_by_name() -> None:
    rules = re.sub(r":root \{.*?\n *\}", "", STYLE, flags=re.DOTALL)
    assert set(re.findall(r"#[0-9a-fA-F]{3,8}\b(?!-)", rules)) == {"#4a4f57"}, (
        "the page number, where no variable reaches"
    )
    named = set(re.findall(r"var\(--([a-z-]+)\)", rules))
    assert named <= set(variables(STYLE)) | {"serif", "sans", "mono"}


def test_every_class_of_a_picture_has_a_style() -> None:
    used = set()
    for document in (evaluation(), evaluation(passed=False)):
        for picture in parse(page(document)).all("svg"):
            used |= {name for node in picture.every() for name in node.attributes.get("class", "").split()}
    styled = set(re.findall(r"\.([a-z][a-z0-9-]*)", STYLE))
    assert used - styled == {"curve-0"}, "a solid line needs none"


def test_what_is_folded_is_open_on_paper() -> None:
    printed = STYLE.split("@media print {\n  @page")[1]
    assert "details::details-content { content-visibility: visible !important; display: block !important" in printed
    assert "break-inside: avoid" in printed
    assert "thead { display: table-header-group; }" in printed


def test_everything_that_the_page_is_made_of_is_installed_with_it() -> None:
    root = Path(str(files("app.evaluations.report")))
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    globs = project["tool"]["setuptools"]["package-data"]["app.evaluations.report"]
    data = [str(path.relative_to(root)) for path in root.rglob("*.*") if path.suffix not in {".py", ".pyc"}]
    assert len(data) == 2
    assert [name for name in data if not any(fnmatch.fnmatch(name, pattern) for pattern in globs)] == []


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_can_be_shown(name: str) -> None:
    document = evaluation() | {"policy": json.loads(POLICIES[name].model_dump_json())}
    assert f"policy <code>{name}</code> version {POLICIES[name].version}" in page(document)


@pytest.mark.parametrize("passed", [True, False])
def test_of_a_fresh_adapter_the_page_says_that_the_base_model_knows(passed: bool) -> None:
    document = evaluation(passed=passed, control=False) | {"source_version": None, "reference": None}
    asked = job(passed=passed, base_model="acme/base-1b", lora={"rank": 16, "alpha": 32.0}, source_version=None)
    page = report(read(document), asked)
    assert "what the base model acme/base-1b itself knows" in page
    assert "The base model alone, which knows them," in page
    assert "never saw them, gives" not in page
    assert "ersion None" not in page


@pytest.mark.parametrize("exact", [True, False])
def test_of_a_result_that_was_trained_anew_the_page_says_on_what_and_whether_it_is_exact(exact: bool) -> None:
    method = RetrainRequest().resolve(Recipe(learning_rate=1e-3, epochs=3), 359).model_dump(mode="json")
    counts = {"forget_records": 40, "found": 40 if exact else 38, "removed": 41, "training_records": 359}
    document = evaluation() | {"method": method, "retraining": {"exact": exact, **counts}}
    page = report(read(document), job(method=method))
    assert "trained anew from the base model" in page
    assert "359 records of its training set" in page
    assert f"{counts['found']} of 40 forget records were in it" in page
    assert f"The result is {'exact' if exact else 'not exact'} in this sense and no other." in page
    assert "trained further by" not in page


def test_advice_on_a_result_that_was_trained_anew_names_no_knob_that_it_has_not() -> None:
    method = RetrainRequest().resolve(Recipe(learning_rate=1e-3, epochs=3), 359).model_dump(mode="json")
    causes = advice(read(evaluation(passed=False) | {"method": method}))
    remedies = " ".join(remedy for cause in causes for remedy in cause.remedies)
    assert "original training" in remedies
    assert "the same in other words" in remedies
    knobs = ("gamma", "forget loss", "learning rate", "anchor", "stop rule", "steps", "max_attempts")
    assert [knob for knob in knobs if knob in remedies] == []
