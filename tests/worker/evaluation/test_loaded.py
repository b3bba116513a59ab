"""Models for probes: each as it is in its files, whatever was done to the one before."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app.methods import DEFAULT_POLICY
from tests.worker.conftest import CONTEXT, FORGET_RECORDS, RETAIN_RECORDS, Tiny, blur_method, encode
from worker.evaluation.loaded import LoadedSubject
from worker.evaluation.metrics import token_scores
from worker.unlearning.lora import AdapterError
from worker.unlearning.models import load_base


def subject_of(base: Path, **folders: Path) -> LoadedSubject:
    model, tokenizer = load_base(base)
    records = {"forget": FORGET_RECORDS, "retain": RETAIN_RECORDS}
    return LoadedSubject(
        model, tokenizer, folders, records, policy=DEFAULT_POLICY, method=blur_method(), seed=7, batch_size=4
    )


@pytest.fixture
def subject(llama: Tiny, memorised: Tiny) -> LoadedSubject:
    return subject_of(llama.base, source=memorised.adapter, result=llama.adapter)


def nll(subject: LoadedSubject, model: torch.nn.Module) -> float:
    scores = token_scores(model, subject.tokenizer, encode(FORGET_RECORDS, subject.tokenizer), 4)
    return sum(score.nll_sum for score in scores)


def spoil(model: torch.nn.Module) -> None:
    """What a probe may do to its model before it breaks."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1.0)
    raise ZeroDivisionError


def seen(subject: LoadedSubject, name: str) -> float:
    with subject.model(name) as model:  # type: ignore[arg-type]
        return nll(subject, model)


def test_every_model_is_its_own_in_any_order(subject: LoadedSubject, llama: Tiny) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {name: {seen(subject, name) for _ in range(2)} for name in ("base", "source", "result")}
        for name in ("source", "base", "result", "source"):
            found[name].add(seen(subject, name))
    assert all(len(values) == 1 for values in found.values())
    base, _ = load_base(llama.base)
    assert found["base"] == {nll(subject, base)}
    assert max(found["source"]) < min(found["result"])


def test_what_is_done_to_factors_is_gone_afterwards(subject: LoadedSubject) -> None:
    before = seen(subject, "source")
    with subject.model("source") as model:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.mul_(0.5)
        assert nll(subject, model) != before
    assert seen(subject, "source") == before
    with subject.model("source") as model:
        model.requires_grad_(False)
    with subject.model("source") as model:
        assert any(parameter.requires_grad for parameter in model.parameters())


def test_it_is_gone_after_an_error_too(subject: LoadedSubject) -> None:
    before = seen(subject, "base")
    for block in (subject.fresh(1), subject.on_top("source", 1), subject.model("source")):
        with pytest.raises(ZeroDivisionError), block as model:
            spoil(model)
    assert seen(subject, "base") == before


def test_a_fresh_adapter_is_the_base_model_with_the_sources_modules(subject: LoadedSubject) -> None:
    base = seen(subject, "base")
    with subject.model("source") as model:
        names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    drawn = []
    for seed in (1, 1, 2):
        with subject.fresh(seed) as model:
            assert nll(subject, model) == pytest.approx(base, rel=1e-6)
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            assert trained.keys() == names
            assert {p.dtype for p in trained.values()} == {torch.float32}
            drawn.append(torch.cat([p.detach().flatten() for p in trained.values()]).clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_an_adapter_on_top_leaves_the_one_below_as_it_is(subject: LoadedSubject) -> None:
    source = seen(subject, "source")
    with subject.on_top("source", 1) as model:
        assert nll(subject, model) == pytest.approx(source, rel=1e-6)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained
        assert all(".on_top." in name for name in trained)
    assert seen(subject, "source") == source
    with subject.on_top("base", 1) as model:
        assert nll(subject, model) == pytest.approx(seen_base := nll(subject, model))
    assert seen_base == pytest.approx(seen(subject, "base"), rel=1e-6)


def test_blocks_do_not_nest(subject: LoadedSubject) -> None:
    with subject.model("base"), pytest.raises(RuntimeError, match="one model at a time"), subject.model("source"):
        pass
    seen(subject, "source")


def test_scores_are_measured_once(subject: LoadedSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    first = subject.scores("result")
    monkeypatch.setattr("worker.evaluation.loaded.evaluate_model", None)
    assert subject.scores("result") is first
    assert set(first) == {"forget", "retain"}


def test_the_control_is_the_reference_where_there_is_one(llama: Tiny, memorised: Tiny) -> None:
    folders = {"source": llama.adapter, "result": llama.adapter}
    without = subject_of(llama.base, **folders)
    assert (without.models, without.reference) == (("base", "source", "result"), "base")
    given = subject_of(llama.base, **folders, control=llama.adapter)
    assert (given.models, given.reference) == (("base", "source", "control", "result"), "control")
    knows = subject_of(llama.base, **folders, control=memorised.adapter)
    assert (knows.reference, knows.control_fits) == ("base", False)


def test_what_is_asked_does_not_depend_on_how_training_cut_the_records(llama: Tiny) -> None:
    folders = {"source": llama.adapter, "result": llama.adapter}
    model, tokenizer = load_base(llama.base)
    records = {"forget": FORGET_RECORDS, "retain": RETAIN_RECORDS}
    lengths = {
        LoadedSubject(
            model, tokenizer, folders, records, policy=DEFAULT_POLICY, method=blur_method(max_length=length), seed=7
        ).max_length
        for length in (16, CONTEXT, 4096)
    }
    assert lengths == {CONTEXT}, "the model's context; short windows would hide prompts from the judge"


def test_a_control_that_somebody_has_unlearned_does_not_fit(llama: Tiny, memorised: Tiny) -> None:
    """Compared with an over-forgetting control, over-forgetting would not stand out."""
    subject = subject_of(llama.base, source=llama.adapter, result=llama.adapter, control=llama.adapter)
    assert subject.control_fits
    scores = subject.scores("control")["forget"]
    subject._scores["control"]["forget"] = replace(scores, nll=subject.scores("base")["forget"].nll + 1.5)
    assert not subject.control_fits
    ignorant = subject_of(llama.base, source=memorised.adapter, result=llama.adapter, control=llama.adapter)
    assert not ignorant.control_fits, "it does not know what was to be kept"


def test_a_score_that_is_not_finite_is_an_error(subject: LoadedSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = subject.scores("result")
    broken = replace(scores["forget"].per_record[0], nll=math.nan)
    found = {**scores, "forget": replace(scores["forget"], per_record=(broken,))}
    monkeypatch.setattr("worker.evaluation.loaded.evaluate_model", lambda *_args, **_kwargs: found)
    with pytest.raises(AdapterError, match="under the source model a record has no finite likelihood"):
        subject.scores("source")
