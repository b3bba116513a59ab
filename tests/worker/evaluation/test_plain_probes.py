"""Recall, utility and history: the probes that only ask as in training, and the verdict over all."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.methods import POLICIES, PROBES, Policy
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, encode
from tests.worker.evaluation.subjects import FakeSubject, adapter_that_knows, make_subject
from worker.evaluation import battery
from worker.evaluation.battery.base import Found, ModelName, NotApplicable
from worker.evaluation.battery.history import History
from worker.evaluation.battery.recall import Recall
from worker.evaluation.battery.resurfacing import Resurfacing
from worker.evaluation.battery.utility import GENERAL, NEIGHBOUR_SHARE, Utility, neighbours
from worker.evaluation.judgement import judge, prepare
from worker.evaluation.loaded import LoadedSubject
from worker.evaluation.tuning import Diverged
from worker.unlearning.encoding import Example
from worker.unlearning.models import load_base

STRICT = Policy(max_forget_nll_excess=1.0, min_neighbour_probability_ratio=0.85, max_general_nll_increase=0.5)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where adapters are found again."""
    return tmp_path_factory.mktemp("adapters")


def outcome(found: Found) -> dict[str, bool]:
    return {check.name: check.passed for check in found.checks}


def values(found: Found, name: str) -> dict[str, float]:
    return {measure.model: measure.value for measure in found.measures if measure.name == name}


def test_every_probe_of_a_policy_is_there() -> None:
    assert tuple(battery.PROBES) == PROBES
    assert all(set(policy.probes) <= set(PROBES) for policy in POLICIES.values())
    assert all(probe.title.endswith("?") for probe in battery.PROBES.values())


# Recall.


def test_recall_passes_who_never_saw_the_records_and_fails_who_did(llama: Tiny, folder: Path) -> None:
    never = Recall().run(make_subject(llama, folder, policy=STRICT))
    assert set(outcome(never).values()) == {True}
    remembers = Recall().run(make_subject(llama, folder, result="remembers", policy=STRICT))
    assert not any(outcome(remembers)[name] for name in ("forget_probability", "forget_extraction_strength"))
    assert outcome(remembers)["forget_nll_excess"], "what is known is no over-forgetting"
    seen = values(remembers, "forget_probability")
    assert seen["source"] == seen["result"] > seen["control"]
    assert set(seen) == {"base", "source", "control", "result"}


def test_over_forgetting_counts_against_the_control_or_the_base(llama: Tiny, folder: Path) -> None:
    for control in (True, False):
        subject = make_subject(llama, folder, control=control, policy=STRICT)
        check = next(c for c in Recall().run(subject).checks if c.name == "forget_nll_excess")
        scores = [subject.scores(name)["forget"].nll for name in ("result", "control" if control else "base")]
        assert check.value == pytest.approx(scores[0] - scores[1])


def test_truth_ratios_are_measured_where_records_bring_wrong_answers(llama: Tiny, folder: Path) -> None:
    plain = make_subject(llama, folder)
    assert values(Recall().run(plain), "forget_truth_ratio") == {}
    wrong = [record["completion"] for record in RETAIN_RECORDS[:3]]
    asked: list[dict[str, Any]] = [dict(record) for record in FORGET_RECORDS]
    asked[0]["perturbed"] = wrong
    asked[1] |= {"perturbed": wrong, "paraphrase": " Something else."}
    found = Recall().run(make_subject(llama, folder, records={**plain.records, "forget": asked}))
    assert set(values(found, "forget_truth_ratio")) == {"base", "source", "control", "result"}
    assert all(0 <= value <= 1 for value in values(found, "forget_truth_ratio").values())
    assert {m.records for m in found.measures if m.name == "forget_truth_ratio"} == {2}
    quality = next(m for m in found.measures if m.name == "forget_quality_log10_p")
    assert quality.value == pytest.approx(0.0), "the result is the control"
    assert quality.detail == "against control"


# Utility.


def test_utility_passes_who_knows_what_was_to_be_kept(llama: Tiny, folder: Path) -> None:
    found = Utility().run(make_subject(llama, folder, policy=STRICT))
    assert "plain sentences are not judged" in found.note, "a random model finds them no likelier than any tokens"
    assert outcome(found) == dict.fromkeys(
        (
            "retain_probability_ratio",
            "retain_rouge_l_recall_ratio",
            "neighbour_probability_ratio",
        ),
        True,
    )
    assert values(found, "holdout_probability").keys() == {"base", "source", "control", "result"}


def test_utility_fails_who_forgot_that_too(llama: Tiny, folder: Path) -> None:
    subject = make_subject(llama, folder, policy=STRICT)
    known = subject.scores("source")["retain"]
    subject._scores["result"] = {**subject.scores("base")}
    found = Utility().run(subject)
    assert not outcome(found)["retain_probability_ratio"]
    assert not outcome(found)["neighbour_probability_ratio"]
    ratio = next(check.value for check in found.checks if check.name == "retain_probability_ratio")
    assert ratio == pytest.approx(subject.scores("base")["retain"].probability / known.probability)


def test_plain_sentences_are_judged_where_the_base_makes_sense_of_them(
    llama: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tuple(record["prompt"] + record["completion"] for record in RETAIN_RECORDS)
    monkeypatch.setattr("worker.evaluation.battery.utility.GENERAL", known)
    monkeypatch.setattr("worker.evaluation.battery.utility._says_something", lambda *_: True)
    subject = make_subject(llama, folder, policy=STRICT)
    assert outcome(Utility().run(subject))["general_nll_increase"]
    only_forgotten = adapter_that_knows(llama, FORGET_RECORDS, folder / "only")
    subject = replace(subject, folders={**subject.folders, "result": only_forgotten})
    assert not outcome(Utility().run(subject))["general_nll_increase"]


def test_limits_that_a_policy_does_not_have_are_not_judged(llama: Tiny, folder: Path) -> None:
    subject = make_subject(llama, folder, policy=Policy())
    names = outcome(Utility().run(subject)) | outcome(Recall().run(subject))
    assert not {"neighbour_probability_ratio", "general_nll_increase", "forget_nll_excess"} & set(names)


def test_plain_sentences_count_one_by_one(llama: Tiny, folder: Path) -> None:
    found = Utility().run(make_subject(llama, folder))
    assert {m.records for m in found.measures if m.name == "general_nll"} == {len(GENERAL)}
    assert all(math.isfinite(value) for value in values(found, "general_nll").values())


def test_neighbours_are_those_that_share_most_tokens(llama: Tiny) -> None:
    _, tokenizer = llama.load()
    forget = encode(FORGET_RECORDS[:1], tokenizer)
    near = {**FORGET_RECORDS[0], "completion": " somewhere else"}
    retain = encode([*RETAIN_RECORDS, near], tokenizer)
    chosen = neighbours(forget, retain)
    assert len(RETAIN_RECORDS) in chosen
    assert len(chosen) == max(1, round(NEIGHBOUR_SHARE * (len(RETAIN_RECORDS) + 1)))
    assert neighbours(forget, []) == set()


def test_neighbours_of_equal_likeness_go_by_their_number() -> None:
    same = [Example(record, (1, 2, 3), 1, "", "") for record in range(8)]
    assert neighbours(same[:1], same) == {0, 1}


# History.


def test_history_needs_something_that_was_forgotten_before(llama: Tiny, folder: Path) -> None:
    with pytest.raises(NotApplicable, match="no records of earlier requests"):
        History().run(make_subject(llama, folder))


def earlier(llama: Tiny, folder: Path, result: Any) -> FakeSubject:
    subject = make_subject(llama, folder, result=result, policy=POLICIES["default"])
    sets = {"history/job_a": FORGET_RECORDS[:2], "history/job_b": FORGET_RECORDS[2:]}
    return make_subject(llama, folder, result=result, policy=POLICIES["default"], records={**subject.records, **sets})


def test_history_finds_what_came_back(llama: Tiny, folder: Path) -> None:
    fine, bad = (History().run(earlier(llama, folder, result)) for result in ("forgot", "remembers"))
    assert outcome(fine) == {"history_probability": True, "history_extraction_strength": True}
    assert outcome(bad) == {"history_probability": False, "history_extraction_strength": False}
    assert {measure.detail for measure in bad.measures} == {"job_a", "job_b"}
    assert "job_" in bad.checks[0].description


# The verdict.


class Refusing(Recall):
    """Does not apply."""

    def run(self, subject: Any) -> Found:
        raise NotApplicable("nothing to look at")


def test_probes_that_do_not_apply_are_reported_and_neither_pass_nor_fail(
    llama: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject: Any = make_subject(llama, folder, policy=Policy(probes=("utility", "recall")))
    whole = judge(subject)
    assert [report.name for report in whole.probes] == ["recall", "utility"], "in the battery's order"
    assert (whole.gate.verdict, whole.known_before) == ("passed", True)
    assert set(whole.scores) == {"base", "source", "control", "result"}
    monkeypatch.setattr("worker.evaluation.judgement.PROBES", {**battery.PROBES, "recall": Refusing()})
    without = judge(subject)
    assert next((r.name, r.measured, r.note) for r in without.probes) == ("recall", False, "nothing to look at")
    assert {check.probe for check in without.gate.checks} == {"utility"}


def loaded(tiny: Tiny, folder: Path) -> LoadedSubject:
    """A subject over files that every probe can look at."""
    fake: Any = make_subject(tiny, folder, control=False)
    base, tokenizer = load_base(tiny.base)
    policy = POLICIES["audit"]
    return LoadedSubject(
        base, tokenizer, fake.folders, fake.records, policy=policy, method=fake.method, seed=7, batch_size=8
    )


def test_what_is_measured_ahead_is_what_would_be_measured_after(
    llama: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, prepared = loaded(llama, folder), loaded(llama, folder)
    spent = prepare(prepared, lambda: False)
    assert set(spent) == set(prepared.policy.probes)
    lent: set[str] = set()
    lend = LoadedSubject.model

    def noting(subject: LoadedSubject, name: ModelName) -> Any:
        lent.add(name)
        return lend(subject, name)

    monkeypatch.setattr(LoadedSubject, "model", noting)
    monkeypatch.setattr(LoadedSubject, "fresh", None)
    found = judge(prepared, spent=spent)
    assert lent == {"result"}, "all of the others were looked at before"
    monkeypatch.undo()
    wanted = judge(at_once)
    assert (found.gate, found.scores) == (wanted.gate, wanted.scores)
    assert [probe.measures for probe in found.probes] == [probe.measures for probe in wanted.probes]
    assert all(probe.seconds >= round(spent[probe.name], 3) for probe in found.probes)


def test_measuring_ahead_ends_when_the_result_is_there(llama: Tiny, folder: Path) -> None:
    looks = iter([False, False, True])
    assert list(prepare(loaded(llama, folder), lambda: next(looks))) == ["recall", "utility"]


class Diverging(Resurfacing):
    """Cannot be measured."""

    def run(self, subject: Any) -> Found:
        raise Diverged("further training diverged")


@pytest.mark.parametrize("judged", [True, False])
def test_what_was_to_be_judged_and_diverged_fails(
    llama: Tiny, folder: Path, monkeypatch: pytest.MonkeyPatch, *, judged: bool
) -> None:
    limits = {"max_resurfaced_probability": 0.25} if judged else {}
    policy = Policy(probes=("recall", "utility", "resurfacing"), **limits)
    subject: Any = make_subject(llama, folder, policy=policy)
    monkeypatch.setattr("worker.evaluation.judgement.PROBES", {**battery.PROBES, "resurfacing": Diverging()})
    found = judge(subject)
    assert [check.name for check in found.gate.checks if not check.passed] == ["resurfaced_probability"] * judged
    assert (found.probes[-1].measured, found.probes[-1].note) == (False, "further training diverged")


def test_a_source_that_never_showed_the_records_is_noticed(llama: Tiny, folder: Path) -> None:
    subject: Any = make_subject(llama, folder, policy=Policy())
    subject._scores["source"] = subject.scores("base")
    assert not judge(subject).known_before
