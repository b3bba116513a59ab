from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (the name that torch users know)
from torch import Tensor

from app.methods import BlurMethod
from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, blur_method, encode, memorise
from worker.unlearning.encoding import Example, encode_records
from worker.unlearning.loop import (
    StepReport,
    Trainer,
    UnlearningError,
    learning_rate_at,
    sequence_nll,
    trainable_parameters,
    unlearn,
)
from worker.unlearning.lora import adapter_state, attach_adapter, read_state
from worker.unlearning.models import load_base

PAD = 2
ALL = range(4)


def sets(tokenizer: Any) -> tuple[list[Example], list[Example]]:
    return encode(FORGET_RECORDS, tokenizer), encode(RETAIN_RECORDS, tokenizer)


def trainer(tiny: Tiny, method: BlurMethod, *, shift: float = 0.0) -> Trainer:
    """A trainer whose reference is off by ``shift`` nats per example, so that the NPO weights differ."""
    model, tokenizer = tiny.load()
    made = Trainer(model, PAD, *sets(tokenizer), method, seed=0)
    made.reference += shift * torch.arange(4.0)
    return made


def gradients(made: Trainer, forget: Sequence[int] = ALL, retain: Sequence[int] = ALL) -> tuple[Tensor, Tensor]:
    made.forget_pass(forget)
    made.retain_pass(retain)
    return made.forget_gradient.vector.clone(), made.retain_gradient.vector.clone()


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Equal up to ``tolerance`` of the norm."""
    assert float(expected.norm()) > 1e-3
    assert float((actual - expected).norm() / expected.norm()) <= tolerance


def plain_nll(model: Any, examples: Sequence[Example]) -> Tensor:
    """Summed label NLL of each example from one padded batch and full logits: an independent way."""
    width = max(len(example.input_ids) for example in examples)
    ids = torch.full((len(examples), width), PAD)
    labels = torch.full((len(examples), width), -100)
    mask = torch.zeros((len(examples), width), dtype=torch.int64)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids)
        labels[row, example.prompt_length : length] = torch.tensor(example.labels)
        mask[row, :length] = 1
    logits = model(input_ids=ids, attention_mask=mask).logits  # (batch, tokens, vocab)
    nll = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none")
    return nll.sum(dim=1)


def flat_gradient(loss: Tensor, model: Any) -> Tensor:
    parts = torch.autograd.grad(loss, trainable_parameters(model), retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def test_two_passes_give_the_gradients_of_one_concatenated_pass(tiny: Tiny) -> None:
    made = trainer(tiny, blur_method(micro_batch_size=4), shift=9.0)
    forget_gradient, retain_gradient = gradients(made)
    nll = plain_nll(made.model, [*made.forget, *made.retain])
    gap = nll[:4] - made.reference
    npo = (-(2 / 0.03) * F.logsigmoid(0.03 * gap)).mean()
    tokens = sum(len(example.labels) for example in made.retain)
    assert_same(forget_gradient, flat_gradient(npo, made.model))
    assert_same(retain_gradient, flat_gradient(nll[4:].sum() / tokens, made.model))


def test_losses_are_those_of_the_definitions(tiny: Tiny) -> None:
    made = trainer(tiny, blur_method(), shift=9.0)
    nll = plain_nll(made.model, [*made.forget, *made.retain]).detach()
    npo = (-(2 / 0.03) * F.logsigmoid(0.03 * (nll[:4] - made.reference))).mean()
    tokens = sum(len(example.labels) for example in made.retain)
    assert float(made.forget_pass(ALL)) == pytest.approx(float(npo), rel=1e-5)
    assert float(made.retain_pass(ALL)) == pytest.approx(float(nll[4:].sum() / tokens), rel=1e-5)


def test_forgetting_starts_as_gradient_ascent_at_two_over_beta_log_two(tiny: Tiny) -> None:
    made = trainer(tiny, blur_method(forget_loss={"beta": 0.1}))
    assert float(made.forget_pass(ALL)) == pytest.approx(20 * math.log(2), rel=1e-5)
    ascent = -flat_gradient(plain_nll(made.model, made.forget).mean(), made.model)
    assert_same(made.forget_gradient.vector, ascent)


def test_reference_stays_exact_when_the_model_comes_in_training_mode(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    model.train()  # dropout of the adapter, and of GPT-2, would be on
    reports: list[StepReport] = []
    unlearn(model, PAD, *sets(tokenizer), blur_method(steps=1), seed=0, on_step=reports.append)
    assert reports[0].forget_loss == pytest.approx(2 / 0.03 * math.log(2), rel=1e-5)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_micro_batches_do_not_change_the_gradients(tiny: Tiny, micro_batch_size: int) -> None:
    whole = gradients(trainer(tiny, blur_method(micro_batch_size=8), shift=9.0))
    parts = gradients(trainer(tiny, blur_method(micro_batch_size=micro_batch_size), shift=9.0))
    assert_same(parts[0], whole[0])
    assert_same(parts[1], whole[1])


def test_order_within_a_batch_does_not_change_the_gradients(tiny: Tiny) -> None:
    made = trainer(tiny, blur_method(micro_batch_size=2), shift=9.0)
    sorted_gradients = gradients(made)
    mixed = gradients(made, [2, 0, 3, 1], [3, 1, 0, 2])
    assert_same(mixed[0], sorted_gradients[0])
    assert_same(mixed[1], sorted_gradients[1])


def test_shards_of_two_ranks_average_to_the_gradients_of_one(llama: Tiny) -> None:
    made = trainer(llama, blur_method(), shift=9.0)
    whole = gradients(made)
    shards = [gradients(made, part, part) for part in ([0, 1], [2, 3])]
    assert_same((shards[0][0] + shards[1][0]) / 2, whole[0])
    # A token mean needs the shards weighted by their tokens; an equal average would be another loss.
    tokens = [sum(len(made.retain[i].labels) for i in part) for part in ([0, 1], [2, 3])]
    assert tokens[0] != tokens[1]
    assert_same((tokens[0] * shards[0][1] + tokens[1] * shards[1][1]) / sum(tokens), whole[1])


def test_sequence_nll_does_not_depend_on_the_batch(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    examples = [example for part in sets(tokenizer) for example in part]
    alone = sequence_nll(model, examples, PAD, 1)
    torch.testing.assert_close(sequence_nll(model, examples, PAD, 8), alone, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(alone, plain_nll(model, examples).detach(), rtol=1e-5, atol=1e-4)


def test_forget_set_is_unlearned_and_retain_set_stays(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    forget, retain = sets(tokenizer)
    memorise(model, forget + retain)
    before = [sequence_nll(model, part, PAD, 8).mean() for part in (forget, retain)]
    method = blur_method(steps=40, learning_rate=5e-3)
    unlearn(model, PAD, forget, retain, method, seed=1, on_step=lambda _report: None)
    after = [sequence_nll(model, part, PAD, 8).mean() for part in (forget, retain)]
    assert float(after[0]) > float(before[0]) + 20
    assert float(after[1]) < float(before[1]) + 1


def test_bfloat16_base_is_unlearned_through_float32_factors(tiny: Tiny) -> None:
    base, tokenizer = load_base(tiny.base, dtype=torch.bfloat16)
    model = attach_adapter(base, tiny.adapter)
    reports: list[StepReport] = []
    method = blur_method(steps=15, learning_rate=5e-3)
    unlearn(model, PAD, *sets(tokenizer), method, seed=0, on_step=reports.append)
    assert reports[0].forget_loss == pytest.approx(2 / 0.03 * math.log(2), rel=0.01)
    assert reports[-1].forget_loss < reports[0].forget_loss - 5
    assert {p.dtype for p in trainable_parameters(model)} == {torch.float32}


def test_base_weights_are_never_touched(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    unlearn(model, PAD, *sets(tokenizer), blur_method(), seed=0, on_step=lambda _report: None)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    stored = read_state(tiny.adapter)
    state = adapter_state(model, like=stored)
    assert all(not torch.equal(state[key], stored[key]) for key in stored), "every factor is trained"


def final_state(tiny: Tiny, seed: int) -> dict[str, Tensor]:
    model, tokenizer = tiny.load()
    method = blur_method(steps=6, forget_batch_size=2, retain_batch_size=2)
    unlearn(model, PAD, *sets(tokenizer), method, seed=seed, on_step=lambda _report: None)
    return adapter_state(model, like=read_state(tiny.adapter))


def test_same_seed_same_bytes_and_another_seed_other_bytes(tiny: Tiny) -> None:
    first, again, other = final_state(tiny, 3), final_state(tiny, 3), final_state(tiny, 4)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_one_step_is_adamw_on_the_clipped_combination(llama: Tiny) -> None:
    # Half way through the warm-up: the rate of this step is 1e-3.
    knobs = {"learning_rate": 2e-3, "warmup_steps": 2}
    method = blur_method(gamma=0.4, max_grad_norm=0.01, weight_decay=0.1, **knobs)
    made = trainer(llama, method)
    start = torch.cat([p.detach().flatten() for p in made.parameters])
    f, r = (gradient.double() for gradient in gradients(made))
    u = r + (0.4 - f.dot(r) / f.dot(f)) * f
    clipped = u * (0.01 / u.norm())
    report = made.step(0)
    # AdamW's first step: moments corrected for bias are g and g^2; decay acts on the weights, not on u.
    expected = start * (1 - 1e-3 * 0.1) - 1e-3 * clipped / (clipped.abs() + 1e-8)
    moved = torch.cat([p.detach().flatten() for p in made.parameters])
    large = clipped.abs() > 1e-5  # where rounding of u cannot turn its sign
    assert int(large.sum()) > 1000
    torch.testing.assert_close(moved[large], expected.float()[large], rtol=0, atol=5e-6)
    assert report.clipped
    assert report.update_norm == pytest.approx(float(u.norm()), rel=1e-4)


def test_report_describes_the_step(llama: Tiny) -> None:
    made = trainer(llama, blur_method(steps=7))
    f, r = gradients(made)
    report = made.step(0)
    assert (report.step, report.total_steps, report.learning_rate) == (1, 7, 5e-4)
    assert report.forget_norm == pytest.approx(float(f.norm()), rel=1e-4)
    assert report.retain_norm == pytest.approx(float(r.norm()), rel=1e-4)
    assert report.cosine == pytest.approx(float(torch.cosine_similarity(f, r, dim=0)), abs=1e-4)


def test_every_step_is_reported_once(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    reports: list[StepReport] = []
    unlearn(model, PAD, *sets(tokenizer), blur_method(steps=4), seed=0, on_step=reports.append)
    assert [report.step for report in reports] == [1, 2, 3, 4]


def test_callback_that_raises_stops_the_run(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    seen: list[int] = []

    def cancel(report: StepReport) -> None:
        seen.append(report.step)
        if report.step == 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        unlearn(model, PAD, *sets(tokenizer), blur_method(steps=9), seed=0, on_step=cancel)
    assert seen == [1, 2]


def test_divergence_stops_with_the_number_of_the_step(llama: Tiny) -> None:
    model, tokenizer = llama.load()

    def poison(report: StepReport) -> None:
        if report.step == 2:
            trainable_parameters(model)[0].data.fill_(float("inf"))

    with pytest.raises(UnlearningError, match=r"step 3$"):
        unlearn(model, PAD, *sets(tokenizer), blur_method(steps=9), seed=0, on_step=poison)


@pytest.mark.parametrize("empty", ["forget", "retain"])
def test_set_without_labels_is_refused(llama: Tiny, empty: str) -> None:
    model, tokenizer = llama.load()
    forget, retain = sets(tokenizer)
    nothing = [Example(0, (5,), 1, "", "")]
    chosen = (nothing, retain) if empty == "forget" else (forget, nothing)
    with pytest.raises(UnlearningError, match=f"{empty} set has no sequence"):
        unlearn(model, PAD, *chosen, blur_method(), seed=0, on_step=lambda _report: None)


def test_examples_without_labels_change_nothing(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    forget, retain = sets(tokenizer)
    reports: list[StepReport] = []
    more = [*forget, Example(9, (5,), 1, "", "")]
    unlearn(model, PAD, more, retain, blur_method(steps=1), seed=0, on_step=reports.append)
    model, _ = llama.load()
    unlearn(model, PAD, forget, retain, blur_method(steps=1), seed=0, on_step=reports.append)
    assert reports[0] == reports[1]


def test_frozen_or_half_precision_factors_are_refused(llama: Tiny) -> None:
    model, _ = llama.load()
    next(p for p in model.parameters() if p.requires_grad).data = torch.zeros(4, 32, dtype=torch.bfloat16)
    with pytest.raises(UnlearningError, match="not float32"):
        trainable_parameters(model)
    model.requires_grad_(False)
    with pytest.raises(UnlearningError, match="no trainable parameter"):
        trainable_parameters(model)


def test_windows_of_a_long_record_are_sequences_of_their_own(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    windows = encode_records([{"text": " ".join(FORGET_RECORDS[0].values())}], tokenizer, 8)
    assert len(windows) > 2
    made = Trainer(model, PAD, windows, encode(RETAIN_RECORDS, tokenizer), blur_method(), seed=0)
    expected = plain_nll(model, windows).detach()
    torch.testing.assert_close(made.reference, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("warmup", "rates"),
    [(0, [1.0, 1.0, 1.0, 1.0, 1.0]), (1, [1.0, 1.0, 1.0, 1.0, 1.0]), (4, [0.25, 0.5, 0.75, 1.0, 1.0])],
)
def test_learning_rate_rises_to_its_value_and_stays(warmup: int, rates: list[float]) -> None:
    method = blur_method(warmup_steps=warmup, learning_rate=1.0)
    assert [learning_rate_at(step, method) for step in range(5)] == rates
