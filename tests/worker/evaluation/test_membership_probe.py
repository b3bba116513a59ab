from __future__ import annotations

import math
from pathlib import Path

import pytest

from app.methods import DEFAULT_POLICY
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny
from tests.worker.evaluation.subjects import HOLDOUT_RECORDS, FakeSubject, make_subject
from worker.evaluation.battery import Found, NotApplicable
from worker.evaluation.battery.membership import Membership


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters are trained once."""
    return tmp_path_factory.mktemp("membership")


@pytest.fixture(autouse=True)
def few_are_enough(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sets of these tests are tiny."""
    if "few" not in request.node.name:
        monkeypatch.setattr("worker.evaluation.battery.membership.LEAST_FOR_MEMBERSHIP", 2)


def value(found: Found, name: str, model: str, detail: str) -> float:
    (measure,) = [m for m in found.measures if (m.name, m.model, m.detail) == (name, model, detail)]
    return measure.value


def test_result_that_never_saw_the_records_is_no_further_from_the_control(llama: Tiny, folder: Path) -> None:
    found = Membership().run(make_subject(llama, folder))
    (check,) = found.checks
    assert (check.name, check.value, check.passed) == ("membership_auc_distance", 0.0, True)
    assert value(found, "membership_auc", "source", "loss") == 1.0
    assert value(found, "privacy_leakage_percent", "result", "min_k") == 0.0
    assert all(math.isfinite(measure.value) for measure in found.measures)
    assert {measure.model for measure in found.measures} == {"base", "source", "control", "result"}


def test_result_that_remembers_stands_out_as_too_well_known(llama: Tiny, folder: Path) -> None:
    found = Membership().run(make_subject(llama, folder, result="remembers"))
    (check,) = found.checks
    assert not check.passed
    assert check.value is not None
    assert check.value > 0.3
    assert check.description.endswith("forgotten records are too well known")
    distances = [abs(m.value) for m in found.measures if m.name == "membership_auc_difference"]
    assert check.value == max(distances)
    assert value(found, "privacy_leakage_percent", "result", "min_k") < 0


def test_result_that_knows_the_records_too_little_fails_as_well(llama: Tiny, folder: Path) -> None:
    # The same two models with the sets exchanged: what the result knows better are the look-alikes.
    exchanged = {"forget": HOLDOUT_RECORDS, "retain": RETAIN_RECORDS, "holdout": FORGET_RECORDS}
    found = Membership().run(make_subject(llama, folder, result="remembers", records=exchanged))
    (check,) = found.checks
    assert not check.passed
    assert check.description.endswith("forgotten records are too little known")


def test_without_a_control_the_base_model_stands_for_it(llama: Tiny, folder: Path) -> None:
    found = Membership().run(make_subject(llama, folder, control=False))
    (check,) = found.checks
    assert "result and base" in check.description
    assert not [measure for measure in found.measures if measure.name == "privacy_leakage_percent"]


def test_limit_of_null_is_not_judged(llama: Tiny, folder: Path) -> None:
    policy = DEFAULT_POLICY.model_copy(update={"max_membership_auc_distance": None})
    found = Membership().run(make_subject(llama, folder, policy=policy))
    assert not found.checks
    assert found.measures


def test_few_records_are_measured_and_not_judged(llama: Tiny, folder: Path) -> None:
    found = Membership().run(make_subject(llama, folder, result="remembers"))
    assert not found.checks
    assert "too few to be judged by" in found.note
    assert value(found, "membership_auc", "result", "loss") == 1.0


@pytest.mark.parametrize("records", [None, [], [{"prompt": "Empty?", "completion": ""}]])
def test_without_look_alikes_it_does_not_apply(
    llama: Tiny, folder: Path, records: list[dict[str, str]] | None
) -> None:
    subject: FakeSubject = make_subject(llama, folder, holdout=False)
    if records is not None:
        subject.records = {**subject.records, "holdout": records}
    with pytest.raises(NotApplicable, match="holdout"):
        Membership().run(subject)
