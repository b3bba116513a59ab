"""Runs that train the adapter anew without the records, from the claim to the release."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from sqlalchemy import update

from app.adapters.service import WEIGHTS_NAME
from app.adapters.tables import Adapter
from app.attestations.statement import ATTESTATION_FILE, Statement
from app.attestations.verify import Proof
from app.jobs.schemas import Cost, JobCosts
from app.jobs.tables import Run, UnlearnJob
from app.methods import Recipe, RetrainRequest
from app.settings import get_settings
from tests.worker.conftest import CONTEXT, FORGET_RECORDS, RETAIN_RECORDS, Tiny
from tests.worker.rows import add_job, change, job_of, messages, run_of
from tests.worker.test_recipe import archive_of
from tests.worker.test_resuming import Interruption, abandon, attempt, happening  # noqa: F401 - a fixture
from tests.worker.test_training_sets import adapter_of, dataset_of, records_of, trained_adapter
from tests.worker.tiny_jobs import OPEN, SHUT, evaluation_of, versions
from worker.database import new_session
from worker.execution import execute
from worker.packaging import ANEW, CARD_FILE, EXACT, NOT_EXACT
from worker.recipe import carry_out

pytestmark = pytest.mark.usefixtures("service")
RECIPE: dict[str, Any] = {"learning_rate": 2e-2, "epochs": 80, "batch_size": 4, "max_length": CONTEXT, "seed": 5}
SHORT = RECIPE | {"epochs": 4}
JUDGED = OPEN | {"max_forget_probability": 0.2, "min_retain_probability_ratio": 0.9}
BOTH = [*FORGET_RECORDS, *RETAIN_RECORDS]
COSTS = JobCosts(
    asked="retrain", reason="it was asked for", forget_records=4, found=4, training_records=8,
    retrain=Cost(steps=1, sequences=1), unlearn=Cost(steps=1, sequences=1), exact_if_cheaper_than=2,
)  # fmt: skip


def job_anew(
    adapter: Adapter,
    forget: list[dict[str, Any]] | None = None,
    policy: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
) -> UnlearnJob:
    """A queued job that trains the adapter anew."""
    method = RetrainRequest().resolve(Recipe.model_validate(recipe or SHORT), 4)
    job = add_job(adapter, forget or FORGET_RECORDS, RETAIN_RECORDS, policy=policy or OPEN, costs=COSTS.model_dump())
    change(UnlearnJob, job.id, method=method.model_dump())
    return job


def run(job: UnlearnJob) -> UnlearnJob:
    """The job after it was executed."""
    execute(job.run_id, "w", get_settings(), carry_out)
    return job_of(job)


def test_an_adapter_is_trained_anew_without_the_records_and_its_papers_say_so(memorised: Tiny) -> None:
    adapter = trained_adapter(memorised, BOTH, RECIPE)
    job = run(job_anew(adapter, policy=JUDGED, recipe=RECIPE))
    assert (job.status, job.error, job.result_version, job.exact) == ("succeeded", None, 2, True)
    evaluation, result = evaluation_of(job), versions(adapter)[1]
    before, after = evaluation.models.source, evaluation.models.result
    assert before.forget.probability > 0.5 > 0.1 > after.forget.probability
    assert after.retain.probability > 0.9 * before.retain.probability
    facts = {"exact": True, "forget_records": 4, "found": 4, "removed": 4, "training_records": 4}
    assert evaluation.retraining is not None
    assert evaluation.retraining.model_dump() == facts
    assert evaluation.training is not None
    assert (evaluation.training.steps, evaluation.training.sequences) == (80, 320)
    assert job.costs is not None
    took = job.costs["measured"]
    assert (took["steps"], took["sequences"], took["seconds"] > 0) == (80, 320, True)
    assert any("passed over 320 sequences in 80 steps; the estimate was 1 in 1" in told for told in messages(job))
    files = archive_of(result)
    card = files[CARD_FILE].decode()
    assert all(words in card for words in (*ANEW, EXACT, "exact: yes", "trained anew without records"))
    assert "approximate" not in card
    statement = json.loads(base64.b64decode(json.loads(files[ATTESTATION_FILE])["payload"]))
    assert "trained anew (exact); signed" in Proof(Statement.model_validate(statement), b"", "key").sentence()
    payload = statement["predicate"]
    left = dataset_of(adapter_of(adapter).training_set_id)
    assert (payload["exact"], payload["method"]["type"], EXACT in payload["limits"]) == (True, "retrain", True)
    stated = dict(payload["retraining"])
    stated_set = stated.pop("training_set")
    assert stated == facts
    assert (stated_set["id"], stated_set["records"]) == (left.id, 4)
    assert records_of(left) == RETAIN_RECORDS


def test_a_second_request_is_exact_too(llama: Tiny) -> None:
    adapter = trained_adapter(llama, BOTH, SHORT)
    assert run(job_anew(adapter, FORGET_RECORDS[:2])).exact
    job = run(job_anew(adapter, FORGET_RECORDS[2:]))
    assert (job.status, job.exact, job.result_version) == ("succeeded", True, 3)
    assert records_of(dataset_of(adapter_of(adapter).training_set_id)) == RETAIN_RECORDS


def test_nothing_of_what_was_forgotten_has_touched_the_result(llama: Tiny, memorised: Tiny) -> None:
    # Other records to forget, and a source with other weights: the same bytes come out.
    others: list[dict[str, Any]] = [{"text": "Quite something else."}]
    found = []
    for name, (tiny, forget) in enumerate(((llama, FORGET_RECORDS), (memorised, others))):
        adapter = trained_adapter(tiny, [*forget, *RETAIN_RECORDS], SHORT, name=f"bot-{name}")
        assert run(job_anew(adapter, forget)).status == "succeeded"
        found.append(archive_of(versions(adapter)[1])[WEIGHTS_NAME])
    assert found[0] == found[1]


def test_records_that_were_not_trained_on_make_the_result_not_exact(llama: Tiny) -> None:
    adapter = trained_adapter(llama, BOTH[1:], SHORT)
    job = run(job_anew(adapter))
    assert (job.status, job.exact) == ("succeeded", False)
    assert any("1 of 4 forget records were not in the adapter's training set" in told for told in messages(job))
    assert NOT_EXACT in archive_of(versions(adapter)[1])[CARD_FILE].decode()
    assert adapter_of(adapter).unmatched_records == 1


def test_a_failed_gate_is_not_tried_again_since_the_same_would_come_of_it(llama: Tiny) -> None:
    adapter = trained_adapter(llama, BOTH, SHORT)
    job = run(job_anew(adapter, policy=SHUT | {"max_attempts": 3}))
    assert (job.status, job.exact, len(evaluation_of(job).tries)) == ("gate_failed", None, 1)
    assert job.costs is not None
    assert job.costs["measured"]["sequences"] == 16
    assert adapter_of(adapter).training_set_id == adapter.training_set_id


@pytest.mark.parametrize(
    ("held", "values", "code"),
    [
        (BOTH, {"training_set_id": None}, "training_set_missing"),
        (BOTH, {"unmatched_records": 1}, "training_set_stale"),
        (FORGET_RECORDS, {}, "training_set_empty"),
    ],
)
def test_what_became_impossible_meanwhile_fails_the_job_with_a_reason(
    llama: Tiny, held: list[dict[str, Any]], values: dict[str, Any], code: str
) -> None:
    adapter = trained_adapter(llama, held, SHORT)
    job = job_anew(adapter)
    if values:
        with new_session() as session, session.begin():
            session.execute(update(Adapter).values(**values))
    job = run(job)
    assert job.status == "failed"
    assert job.error is not None
    assert job.error["code"] == code


def test_a_killed_workers_run_goes_on_to_the_bytes_of_one_that_was_not_killed(
    llama: Tiny,
    happening: Interruption,  # noqa: F811
) -> None:
    whole = trained_adapter(llama, BOTH, SHORT, name="whole")
    assert run(job_anew(whole)).status == "succeeded"
    adapter = trained_adapter(llama, BOTH, SHORT)
    job = job_anew(adapter)
    abandon(job, happening, 3)
    job = attempt(job, happening)
    assert (job.status, run_of(job).attempt, happening.steps) == ("succeeded", 2, [3, 4])
    assert any("going on from step 2" in told for told in messages(job))
    assert versions(adapter)[1].weights_sha256 == versions(whole)[1].weights_sha256
    assert job.costs is not None
    assert job.costs["measured"]["sequences"] == 16


def test_progress_counts_the_steps_of_the_recipe_on_what_is_left(llama: Tiny) -> None:
    adapter = trained_adapter(llama, BOTH, SHORT | {"batch_size": 2})
    job = run(job_anew(adapter, recipe=SHORT | {"batch_size": 2}))
    with new_session() as session:
        done = session.get_one(Run, job.run_id)
    assert (done.step, done.total_steps) == (8, 8)
    assert "step 8 of 8" in messages(job)
