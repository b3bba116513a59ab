from __future__ import annotations

from pathlib import Path

import pytest

from app.methods.policy import AUDIT_POLICY
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny
from tests.worker.evaluation.subjects import adapter_that_knows, make_subject
from worker.evaluation.battery import Found, NotApplicable
from worker.evaluation.battery.sampling import Sampling


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters are trained once."""
    return tmp_path_factory.mktemp("sampling")


def values(found: Found, model: str) -> dict[str, float]:
    return {m.detail: m.value for m in found.measures if (m.name, m.model) == ("sampled_leak", model)}


def test_result_that_never_saw_the_records_passes_and_the_source_leaks(llama: Tiny, folder: Path) -> None:
    found = Sampling().run(make_subject(llama, folder, policy=AUDIT_POLICY))
    (check,) = found.checks
    assert (check.name, check.value, check.limit, check.passed) == ("sampled_leak", 0.0, 0.05, True)
    source = values(found, "source")
    assert source["leak@16"] >= source["leak@1"] > 0
    assert {measure.model for measure in found.measures} == {"base", "source", "control", "result"}
    assert "4 of 4 records" in found.note


def test_result_that_remembers_fails_with_an_interval(llama: Tiny, folder: Path) -> None:
    subject = make_subject(llama, folder, policy=AUDIT_POLICY)
    knows = adapter_that_knows(llama, FORGET_RECORDS, folder / "knows", steps=150)
    subject.folders = {**subject.folders, "result": knows}
    found = Sampling().run(subject)
    (check,) = found.checks
    assert not check.passed
    assert check.value == values(found, "result")["leak@16"] > 0.9
    assert check.low is not None
    assert check.high is not None
    assert check.low <= check.value <= check.high


def test_what_a_control_leaks_is_no_excuse(llama: Tiny, folder: Path) -> None:
    known = {"forget": RETAIN_RECORDS, "retain": RETAIN_RECORDS}
    found = Sampling().run(make_subject(llama, folder, policy=AUDIT_POLICY, records=known))
    (check,) = found.checks
    assert check.value == values(found, "control")["leak@16"] > check.limit
    assert not check.passed


def test_answers_that_their_prompts_hold_are_left_out(llama: Tiny, folder: Path) -> None:
    told = {"prompt": "Is it Bo Larkin?", "completion": " Bo Larkin."}
    records = {"forget": [told, FORGET_RECORDS[0]], "retain": RETAIN_RECORDS}
    found = Sampling().run(make_subject(llama, folder, policy=AUDIT_POLICY, records=records))
    assert "1 of 2 records" in found.note
    assert {measure.records for measure in found.measures} == {1}
    with pytest.raises(NotApplicable):
        Sampling().run(make_subject(llama, folder, records={**records, "forget": [told]}))
