"""Both gradients of a step against plain automatic differentiation, and whatever must not change them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from app.methods import FORGET_LOSSES
from tests.worker.conftest import Tiny, blur_method
from tests.worker.unlearning import engine
from tests.worker.unlearning.engine import LOSSES, SEED, assert_same, load, loss_name, see, see_plainly, stepper
from worker.unlearning import step
from worker.unlearning.lora import attach_adapter
from worker.unlearning.models import ModelError, backbone, decoder_layers, load_base
from worker.unlearning.step import Stepper

losses = pytest.mark.parametrize("loss", LOSSES, ids=loss_name)


@losses
def test_gradients_are_those_of_plain_differentiation(every: Tiny, loss: dict[str, Any]) -> None:
    expected = see_plainly(every, blur_method(**loss), count=6)
    for passes in ("one", "two"):
        made = stepper(every, blur_method(**loss, passes=passes, micro_batch_size=4), count=6)
        see(made).assert_same(expected)


@losses
def test_micro_batches_do_not_change_the_gradients(llama: Tiny, loss: dict[str, Any]) -> None:
    whole, *parts = (
        see(stepper(llama, blur_method(**loss, passes=passes, micro_batch_size=size), count=16))
        for passes, size in (("two", 16), ("two", 8), ("two", 4), ("one", 16), ("one", 5))
    )
    for part in parts:
        part.assert_same(whole)


@losses
def test_order_within_a_batch_does_not_change_the_gradients(llama: Tiny, loss: dict[str, Any]) -> None:
    made = stepper(llama, blur_method(**loss, micro_batch_size=2), count=6)
    see(made, [4, 2, 0, 5, 3, 1], [3, 5, 1, 0, 2, 4]).assert_same(see(made))


@pytest.mark.parametrize("passes", ["one", "two"])
def test_sets_of_unequal_size_leave_each_other_alone(llama: Tiny, passes: str) -> None:
    made = stepper(llama, blur_method(passes=passes, micro_batch_size=2))
    both = see(made, range(7), range(3))
    assert_same(see(made, range(7), range(8)).forget, both.forget)
    assert_same(see(made, range(2), range(3)).retain, both.retain)


def test_shards_of_two_ranks_average_to_the_gradients_of_one(llama: Tiny) -> None:
    made = stepper(llama, blur_method())
    whole = see(made)
    first, second = (see(made, part, part) for part in (range(4), range(4, 8)))
    assert_same((first.forget + second.forget) / 2, whole.forget)
    # A token mean needs the shards weighted by their tokens; an equal average would be another loss.
    tokens = [sum(len(made.retain.items[i][0].labels) for i in part) for part in (range(4), range(4, 8))]
    assert tokens[0] != tokens[1]
    assert_same((tokens[0] * first.retain + tokens[1] * second.retain) / sum(tokens), whole.retain)


@pytest.mark.parametrize("passes", ["one", "two"])
@pytest.mark.parametrize("loss", ["npo", "rmu"])
def test_gradient_checkpointing_does_not_change_the_gradients(every: Tiny, loss: str, passes: str) -> None:
    knobs: dict[str, Any] = {"passes": passes, "forget_loss": {"type": loss}, "retain_loss": {"type": "kl"}}
    kept = see(stepper(every, blur_method(**knobs), count=4))
    made = stepper(every, blur_method(**knobs, gradient_checkpointing=True), count=4)
    calls = []
    handle = decoder_layers(made.model)[1].register_forward_pre_hook(lambda *_: calls.append(1))
    attention = next(m for m in decoder_layers(made.model)[1].modules() if "Attention" in type(m).__name__)
    attention.register_forward_pre_hook(lambda *_: calls.append(2))
    see(made).assert_same(kept)
    handle.remove()
    if loss == "npo":
        assert calls.count(2) > calls.count(1), "layers are computed again in the backward pass"


def test_wrapped_layers_are_wrapped_again_after_gradient_checkpointing(llama: Tiny) -> None:
    """As accelerate wraps the layers of a model that it has spread over devices."""
    made = stepper(llama, blur_method(gradient_checkpointing=True), count=2)
    layer, seen = decoder_layers(made.model)[0], []
    shipped = layer.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return shipped(*args, **kwargs)

    layer.forward = wrapped
    for _ in range(2):
        see(made)
    assert layer.forward is wrapped
    before = len(seen)
    see(made)
    assert len(seen) > before


@pytest.mark.parametrize("loss", [{"retain_loss": {"type": "kl"}}, {"forget_loss": {"type": "undial"}}, {}])
def test_trained_output_layer_goes_right(outer: Tiny, loss: dict[str, Any]) -> None:
    """Also where the source's logits come from the source's own output layer, and not from the trained one."""
    see(stepper(outer, blur_method(**loss, micro_batch_size=3))).assert_same(see_plainly(outer, blur_method(**loss)))


def test_trained_embeddings_take_two_passes(embedded: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "ONE_PASS_DEVICES", ("cpu",))
    made = stepper(embedded, blur_method(micro_batch_size=3))
    assert made.passes == 2
    see(made).assert_same(see_plainly(embedded, blur_method()))
    assert made.factors.names[0].endswith("lora_embedding_A.default"), "the embedding is trained"


def test_trained_embeddings_refuse_one_pass(embedded: Tiny) -> None:
    with pytest.raises(ModelError, match="embeddings need two passes"):
        stepper(embedded, blur_method(passes="one"))


def pass_through(made: Stepper, change: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> None:
    """Let the first layer's MLP see its tokens in another form."""
    mlp: Any = decoder_layers(made.model)[0].mlp
    shipped = mlp.forward

    def forward(x: Tensor) -> Tensor:
        return back(shipped(change(x))).view_as(x)

    mlp.forward = forward


@pytest.mark.parametrize("passes", ["one", "two"])
def test_layer_that_flattens_the_batch_goes_right(llama: Tiny, passes: str) -> None:
    made = stepper(llama, blur_method(passes=passes))
    pass_through(made, lambda x: x.flatten(0, 1), lambda x: x)
    see(made).assert_same(see(stepper(llama, blur_method(passes="two"))))


def shift(x: Tensor) -> Tensor:
    """As a mixture of experts does: the tokens of all rows, some for one expert and some for the other."""
    return x.flatten(0, 1)[None]


def test_layer_that_mixes_rows_falls_back_to_two_passes(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = see(stepper(llama, blur_method()))
    monkeypatch.setattr(step, "ONE_PASS_DEVICES", ("cpu",))
    made = stepper(llama, blur_method())
    assert made.passes == 1
    pass_through(made, shift, lambda x: x)
    see(made).assert_same(expected)
    assert made.passes == 2


def test_layer_that_mixes_rows_is_refused_where_one_pass_is_asked_for(llama: Tiny) -> None:
    made = stepper(llama, blur_method(passes="one"))
    pass_through(made, shift, lambda x: x)
    with pytest.raises(ModelError, match="passes must be two"):
        see(made)


@pytest.mark.parametrize("device", ["cpu", "other"])
def test_passes_are_picked_by_device(llama: Tiny, monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(step, "ONE_PASS_DEVICES", (device,))
    assert stepper(llama, blur_method(), count=2).passes == (1 if device == "cpu" else 2)


def assert_half_precision_is_close(tiny: Tiny, loss: str) -> None:
    base, tokenizer = load_base(tiny.base, dtype=torch.bfloat16)
    model = attach_adapter(base, tiny.adapter)
    forget, retain = (engine.sequences(tiny, 8, seed) for seed in (0, 1))
    method = blur_method(forget_loss={"type": loss}, passes="one", micro_batch_size=3)
    half = see(engine.make_stepper(model, tokenizer, forget, retain, method))
    full = see(stepper(tiny, method))
    assert half.forget.dtype == torch.float32
    assert half.retain_loss == pytest.approx(full.retain_loss, rel=0.02)
    assert float(torch.cosine_similarity(half.retain, full.retain, dim=0)) > 0.99
    assert float(torch.cosine_similarity(half.forget, full.forget, dim=0)) > 0.9
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("loss", FORGET_LOSSES)
def test_bfloat16_base_has_the_gradients_of_a_float32_one(llama: Tiny, loss: str) -> None:
    assert_half_precision_is_close(llama, loss)


def test_bfloat16_base_computes_with_frozen_factors_too(tiny: Tiny) -> None:
    """RMU freezes those above its layer."""
    assert_half_precision_is_close(tiny, "rmu")


def test_model_is_left_as_it_was(every: Tiny) -> None:
    model, tokenizer = load(every)
    forget, retain = (engine.sequences(every, 4, seed) for seed in (0, 1))
    before, _ = engine.plain_outputs(model, forget)
    made = Stepper(model, tokenizer, forget, retain, blur_method(gradient_checkpointing=True, anchor="base"), SEED)
    see(made)
    assert torch.equal(engine.plain_outputs(model, forget)[0], before)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert {p.requires_grad for n, p in model.named_parameters() if "lora_" in n} == {True}
    assert all(p.grad is None for p in model.parameters())
    assert isinstance(backbone(model), type(backbone(engine.source(every)[0])))
