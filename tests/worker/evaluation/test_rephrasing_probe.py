from __future__ import annotations

import math
from pathlib import Path

import pytest

from app.methods import DEFAULT_POLICY
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny
from tests.worker.evaluation.subjects import adapter_that_knows, make_subject
from worker.evaluation.battery import Found, NotApplicable
from worker.evaluation.battery.rephrasing import Rephrasing
from worker.evaluation.checks import Check


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters are trained once."""
    return tmp_path_factory.mktemp("rephrasing")


def values(found: Found, name: str, model: str) -> dict[str, float]:
    return {m.detail: m.value for m in found.measures if (m.name, m.model) == (name, model)}


def check_of(found: Found, name: str) -> Check:
    (check,) = [check for check in found.checks if check.name == name]
    return check


def test_result_that_never_saw_the_records_passes(llama: Tiny, folder: Path) -> None:
    found = Rephrasing().run(make_subject(llama, folder))
    assert [check.name for check in found.checks] == ["rephrased_probability", "rephrased_extraction_strength"]
    assert all(check.passed and check.records == 4 for check in found.checks)
    assert {measure.model for measure in found.measures} == {"base", "source", "control", "result"}
    assert all(math.isfinite(measure.value) and 0 <= measure.value <= 1 for measure in found.measures)


def test_worst_form_decides_and_is_named(llama: Tiny, folder: Path) -> None:
    # Somebody made it forget the trained wording alone.
    other_words = [{**record, "prompt": f"Q: {record['prompt']}\nA:"} for record in FORGET_RECORDS]
    subject = make_subject(llama, folder)
    subject.folders = {**subject.folders, "result": adapter_that_knows(llama, other_words, folder / "other words")}
    found = Rephrasing().run(subject)
    by_form = values(found, "rephrased_probability", "result")
    worst = max(by_form, key=lambda form: by_form[form])
    mean = sum(by_form.values()) / len(by_form)
    check = check_of(found, "rephrased_probability")
    assert (worst in ("question_and_answer", "cloze"), mean < 0.25, check.passed) == (True, True, False)
    assert check.value == by_form[worst] > mean
    assert check.description.endswith(worst)
    assert check.low is not None
    assert check.high is not None
    assert check.low <= check.value <= check.high


def test_what_the_base_shows_of_the_same_form_is_allowed_and_no_control(llama: Tiny, folder: Path) -> None:
    # Nothing is forgotten here: what is asked for, the control knows as well, and that is no excuse.
    policy = DEFAULT_POLICY.model_copy(update={"max_rephrased_probability": 0.0})
    known = {"forget": RETAIN_RECORDS, "retain": RETAIN_RECORDS}
    found = Rephrasing().run(make_subject(llama, folder, policy=policy, records=known))
    check = check_of(found, "rephrased_probability")
    theirs = values(found, "rephrased_probability", "base")
    assert check.limit == theirs[check.description.rsplit(" ", 1)[1]]
    assert not check.passed


def test_limit_of_null_is_not_judged(llama: Tiny, folder: Path) -> None:
    update = {"max_rephrased_probability": None, "max_rephrased_extraction_strength": None}
    found = Rephrasing().run(make_subject(llama, folder, policy=DEFAULT_POLICY.model_copy(update=update)))
    assert not found.checks
    assert found.measures


def test_without_answers_it_does_not_apply(llama: Tiny, folder: Path) -> None:
    records = {"forget": [{"prompt": "Empty?", "completion": ""}], "retain": RETAIN_RECORDS}
    with pytest.raises(NotApplicable):
        Rephrasing().run(make_subject(llama, folder, records=records))
