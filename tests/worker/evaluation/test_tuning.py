"""Further training: what it trains on, that it can be repeated, and that it fits into memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, encode
from worker.evaluation import tuning as module
from worker.evaluation.quick import shown
from worker.evaluation.tuning import Diverged, Tuner, Tuning
from worker.unlearning.batches import TUNING_STREAM, Batch, batch_indices
from worker.unlearning.likelihood import label_nll
from worker.unlearning.models import hidden_states

RECORDS = FORGET_RECORDS + RETAIN_RECORDS
TUNING = Tuning(learning_rate=5e-3, batch_size=3, max_grad_norm=1.0, seed=7)


def trained(tiny: Tiny, steps: list[int], tuning: Tuning = TUNING) -> Tensor:
    """All factors after so many steps, one after the other."""
    model, tokenizer = tiny.load()
    tuner = Tuner(model, tokenizer, encode(RECORDS, tokenizer), tuning)
    for step in steps:
        tuner.train_to(step)
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])


def test_learns_what_it_is_given(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    known, other = encode(FORGET_RECORDS, tokenizer), encode(RETAIN_RECORDS, tokenizer)
    before = [shown(model, tokenizer, examples, 8).probability for examples in (known, other)]
    Tuner(model, tokenizer, known, TUNING).train_to(40)
    after = [shown(model, tokenizer, examples, 8).probability for examples in (known, other)]
    assert after[0] > before[0] + 0.1
    assert after[1] < before[1] + 0.02


def test_takes_the_steps_of_torch(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    examples = encode(RECORDS, tokenizer)
    factors = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=TUNING.learning_rate, weight_decay=0.0)
    for step in range(5):
        chosen = batch_indices(TUNING.seed, step, len(examples), TUNING.batch_size, stream=TUNING_STREAM)
        optimizer.zero_grad()
        nll = label_nll.__wrapped__(model, [examples[i] for i in chosen], 2, 8)  # type: ignore[attr-defined]
        torch.cat(nll).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(factors, TUNING.max_grad_norm)
        optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in factors])
    torch.testing.assert_close(trained(tiny, [5]), expected, rtol=1e-3, atol=1e-4)


def test_a_look_in_between_changes_nothing_and_the_seed_decides_the_order(llama: Tiny) -> None:
    whole = trained(llama, [6])
    assert torch.equal(trained(llama, [0, 2, 6]), whole)
    assert not torch.equal(trained(llama, [6], Tuning(5e-3, 3, 1.0, seed=8)), whole)


def test_smaller_passes_where_memory_runs_out(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning = Tuning(5e-3, 4, 1.0, 7)  # 8 by fours
    whole, sizes = trained(llama, [4], tuning), []

    def small(model: nn.Module, batch: Batch) -> Tensor:
        sizes.append(batch.shape[0])
        if batch.shape[0] > 1:
            raise torch.OutOfMemoryError
        return hidden_states(model, batch)

    monkeypatch.setattr(module, "hidden_states", small)
    torch.testing.assert_close(trained(llama, [4], tuning), whole, rtol=1e-3, atol=1e-4)
    assert (sizes.count(4), sizes.count(2)) == (1, 1)  # what did not fit once is not tried again


def test_an_epoch_sees_every_labelled_example(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    examples = encode([*RECORDS, {"text": ""}], tokenizer)
    assert Tuner(model, tokenizer, examples, TUNING).epoch == 3  # 8 by threes


def test_refuses_what_has_no_label(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    with pytest.raises(ValueError, match="label"):
        Tuner(model, tokenizer, [], TUNING)


def test_says_when_it_diverged(llama: Tiny) -> None:
    with pytest.raises(Diverged):
        trained(llama, [3], Tuning(float("inf"), 3, 1.0, 7))


def test_trains_the_adapter_alone(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    frozen: dict[str, Any] = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    Tuner(model, tokenizer, encode(RECORDS, tokenizer), TUNING).train_to(2)
    assert frozen
    assert not model.training
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
