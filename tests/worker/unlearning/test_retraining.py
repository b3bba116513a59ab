"""Training anew: fresh factors, and the steps of a recipe on what is left of a training set."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from app.methods import Recipe, RetrainMethod, RetrainRequest
from tests.worker.conftest import CONTEXT, RETAIN_RECORDS, Tiny, encode, make_tiny
from worker.unlearning.batches import RETAIN_STREAM, batch_indices
from worker.unlearning.checkpoint import Checkpoint
from worker.unlearning.encoding import encode_records
from worker.unlearning.likelihood import label_nll
from worker.unlearning.loop import StepReport, UnlearningError, Watcher, retrain
from worker.unlearning.lora import renew

RECIPE: dict[str, Any] = {
    "learning_rate": 1e-2, "epochs": 3, "batch_size": 2, "warmup_steps": 2, "weight_decay": 0.1, "max_grad_norm": 0.5,
    "max_length": CONTEXT, "seed": 3,
}  # fmt: skip


def method_of(sequences: int, **knobs: Any) -> RetrainMethod:
    """A recipe, resolved."""
    return RetrainRequest().resolve(Recipe.model_validate(RECIPE | knobs), sequences)


def factors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of the LoRA factors."""
    return {name: value.detach().clone() for name, value in model.named_parameters() if "lora_" in name}


class Recorder(Watcher):
    """Keeps what it is told, and the checkpoint after a step."""

    def __init__(self, at: int = 0) -> None:
        self.reports: list[StepReport] = []
        self.checkpoint: Checkpoint | None = None
        self._at, self._step = at, 0

    def on_step(self, step: int, total: int) -> None:
        """A step was taken."""
        self._step = step

    def on_report(self, report: StepReport) -> None:
        """Its numbers are known."""
        self.reports.append(report)

    def wants_checkpoint(self) -> bool:
        """Once."""
        return self._step == self._at

    def on_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Keep it, by way of a file."""
        self.checkpoint = Checkpoint.from_bytes(checkpoint.to_bytes())


def test_fresh_factors_do_nothing_and_come_from_the_seed_alone(tiny: Tiny) -> None:
    model, _ = tiny.load()
    other, _ = tiny.load()
    for parameter in other.parameters():
        if parameter.requires_grad:
            parameter.data.add_(1.0)
    renew(model, 1)
    renew(other, 1)
    found, again = factors(model), factors(other)
    assert all(torch.equal(value, again[name]) for name, value in found.items())
    renew(other, 2)
    for name, value in found.items():
        assert bool((value == 0).all()) == ("lora_B" in name), name
        if "lora_A" in name:
            assert not torch.equal(value, factors(other)[name])
            bound = 1 / math.sqrt(value.shape[1])
            assert 0.5 * bound < float(value.abs().max()) <= bound


def test_embeddings_begin_the_other_way_round(tmp_path_factory: pytest.TempPathFactory) -> None:
    model, _ = make_tiny(tmp_path_factory.mktemp("embedding"), "qwen2", ["embed_tokens", "q_proj"]).load()
    renew(model, 1)
    for name, value in factors(model).items():
        assert bool((value == 0).all()) == ("lora_B." in name or "lora_embedding_A" in name), name


@pytest.mark.parametrize("course", ["constant", "linear", "cosine"])
def test_the_steps_are_those_of_plain_training(llama: Tiny, course: str) -> None:
    model, tokenizer = llama.load()
    examples, method = encode(RETAIN_RECORDS, tokenizer), method_of(4, learning_rate_schedule=course)
    renew(model, method.seed)
    outcome = retrain(model, tokenizer, examples, method)
    assert (outcome.steps, outcome.kept_step, outcome.sequences) == (6, 6, 12)
    plain, _ = llama.load()
    renew(plain, method.seed)
    _train_plainly(plain, [encode(RETAIN_RECORDS, tokenizer)], method)
    expected = factors(plain)
    for name, value in factors(model).items():
        assert torch.allclose(value, expected[name], atol=1e-5), name


def _train_plainly(model: Any, sets: list[Any], method: RetrainMethod) -> None:
    """What anybody would write with torch, batch by batch."""
    (examples,) = sets
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1.0, weight_decay=method.weight_decay)
    for step in range(method.steps):
        warmup = method.warmup_steps
        share = (step - warmup) / (method.steps - warmup)
        left = {"constant": 1.0, "linear": 1 - share, "cosine": 0.5 * (1 + math.cos(math.pi * share))}
        part = (step + 1) / warmup if step < warmup else left[method.learning_rate_schedule]
        rate = method.learning_rate * part
        for group in optimizer.param_groups:
            group["lr"] = rate
        drawn = batch_indices(method.seed, step, len(examples), method.batch_size, stream=RETAIN_STREAM)
        nll = label_nll.__wrapped__(model, [examples[i] for i in drawn], 2, 8)  # type: ignore[attr-defined]
        optimizer.zero_grad()
        torch.cat(nll).mean().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained, method.max_grad_norm)
        optimizer.step()


def test_any_micro_batch_gives_the_same(llama: Tiny) -> None:
    found = []
    for size in (1, 4):
        model, tokenizer = llama.load()
        renew(model, 1)
        method = method_of(4, batch_size=4).model_copy(update={"micro_batch_size": size})
        retrain(model, tokenizer, encode(RETAIN_RECORDS, tokenizer), method)
        found.append(factors(model))
    assert all(torch.allclose(value, found[1][name], atol=1e-5) for name, value in found[0].items())


def test_a_resumed_training_ends_with_the_same_bytes_and_counts(llama: Tiny) -> None:
    method = method_of(4)
    whole, tokenizer = llama.load()
    examples = encode(RETAIN_RECORDS, tokenizer)
    renew(whole, method.seed)
    recorder = Recorder(at=3)
    outcome = retrain(whole, tokenizer, examples, method, watcher=recorder)
    resumed, _ = llama.load()
    renew(resumed, method.seed)
    again = retrain(resumed, tokenizer, examples, method, resume=recorder.checkpoint)
    assert again == outcome
    expected = factors(whole)
    assert all(torch.equal(value, expected[name]) for name, value in factors(resumed).items())
    assert [report.kind for report in recorder.reports] == ["training"] * 6
    assert all(report.forget_norm == report.forget_loss == 0 < report.retain_norm for report in recorder.reports)


def test_a_training_set_without_a_label_is_refused(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    with pytest.raises(UnlearningError, match="training set has no sequence"):
        retrain(model, tokenizer, [], method_of(1))


def test_prompts_are_learned_where_the_recipe_says_so(tokenizer: PreTrainedTokenizerBase) -> None:
    answers = encode_records(RETAIN_RECORDS, tokenizer, CONTEXT)
    whole = encode_records(RETAIN_RECORDS, tokenizer, CONTEXT, prompts_too=True)
    for one, other in zip(answers, whole, strict=True):
        assert one.input_ids == other.input_ids
        assert other.labels == one.input_ids[1:] != one.labels
