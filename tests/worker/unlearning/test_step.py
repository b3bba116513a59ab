"""One optimizer step: what it does to the factors, to memory, and what it must not ask of the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from app.methods import METHOD
from tests.worker.conftest import CONTEXT, Tiny, blur_method
from tests.worker.unlearning.engine import (
    LOSSES,
    PAD,
    drift,
    load,
    loss_name,
    plain_nll,
    see,
    sequences,
    source,
    stepper,
)
from worker.unlearning import step
from worker.unlearning.encoding import encode_records
from worker.unlearning.likelihood import sequence_nll
from worker.unlearning.models import backbone
from worker.unlearning.step import SCALARS, Stepper

COMBINERS: list[dict[str, Any]] = [
    {"type": "blur", "gamma": 0.3},
    {"type": "blur", "gamma": 0.3, "gamma_scale": "relative", "scope": "module"},
    {"type": "blur", "gamma": 0.3, "projection": "preconditioned", "scope": "layer"},
    {"type": "forget_upper", "gamma": 0.3},
    {"type": "weighted_sum"},
    {"type": "pdu"},
]


class NoDispatchedReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails on operations that make the host wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        masked = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if masked or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "bincount"):
            raise AssertionError(f"{func} reads from the device")
        return func(*args, **(kwargs or {}))


class NoReads(TorchFunctionMode):
    """Fails on methods that copy to the host. On a CPU they dispatch nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__"):
            raise AssertionError(f"{name} reads from the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_reads() -> Iterator[None]:
    with NoReads(), NoDispatchedReads():  # type: ignore[no-untyped-call]
        yield


def assert_no_reads(tiny: Tiny, knobs: dict[str, Any]) -> None:
    small = {"steps": 5, "max_length": CONTEXT, "micro_batch_size": 2, "stop": {"type": "steps"}}
    made = stepper(tiny, METHOD.validate_python(small | {"anchor": "none", "gamma": 0.1} | knobs), count=3)
    with made.computing(), no_reads():
        scalars = made.step(range(3), range(3), 1e-3)
    assert bool(torch.isfinite(scalars).all())


@pytest.mark.parametrize("passes", ["one", "two"])
@pytest.mark.parametrize("combiner", COMBINERS, ids=lambda knobs: "-".join(map(str, knobs.values())))
def test_no_combiner_waits_for_the_device(llama: Tiny, combiner: dict[str, Any], passes: str) -> None:
    without_gamma = {"gamma": 0.1} if combiner["type"] != "pdu" else {}
    small = {"steps": 5, "max_length": CONTEXT, "micro_batch_size": 2, "passes": passes}
    made = stepper(llama, METHOD.validate_python(small | without_gamma | combiner), count=3)
    with made.computing(), no_reads():
        made.step(range(3), range(3), 1e-3)


@pytest.mark.parametrize("passes", ["one", "two"])
@pytest.mark.parametrize("loss", LOSSES, ids=loss_name)
def test_no_loss_waits_for_the_device(llama: Tiny, loss: dict[str, Any], passes: str) -> None:
    assert_no_reads(llama, {**loss, "passes": passes})


@pytest.mark.parametrize("passes", ["one", "two"])
def test_no_architecture_waits_for_the_device(every: Tiny, passes: str) -> None:
    assert_no_reads(every, {"passes": passes, "gradient_checkpointing": True})


@pytest.mark.parametrize("read", [
    lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: bool(x.sum() > 0), lambda x: x[x > 0],
    lambda x: x.nonzero(), lambda x: float(x[0]), lambda x: x.cpu(), lambda x: torch.where(x > 0),
])  # fmt: skip
def test_reads_are_noticed(read: Any) -> None:
    """Or the tests above would pass whatever a step did."""
    with no_reads(), pytest.raises(AssertionError, match="reads from the device"):
        read(torch.ones(3))


def test_one_step_is_adamw_on_the_clipped_combination(llama: Tiny) -> None:
    method = blur_method(gamma=0.4, max_grad_norm=0.01, weight_decay=0.1)
    made = stepper(llama, method)
    combiner, start = made.combiner, made.factors.vector.clone()
    seen = see(made)
    assert torch.equal(made.factors.vector, start)
    made.combiner = combiner
    made.optimizer = type(made.optimizer)(made.factors.vector, 0.1)
    f, r = seen.forget.double(), seen.retain.double()
    xi = 0.4 - f.dot(r) / f.dot(f)
    u = r + xi * f
    clipped = u * (0.01 / u.norm())
    with made.computing():
        scalars = dict(zip(SCALARS, made.step(range(8), range(8), 1e-3).tolist(), strict=True))
    # AdamW's first step: moments corrected for bias are u and u^2; decay acts on the weights, not on u.
    move = -1e-3 * clipped / (clipped.abs() + 1e-8)
    expected = start.double() * (1 - 1e-3 * 0.1) + move
    large = clipped.abs() > 1e-5  # where rounding of u cannot turn its sign
    assert int(large.sum()) > 1000
    torch.testing.assert_close(made.factors.vector[large].double(), expected[large], rtol=0, atol=5e-6)
    torch.testing.assert_close(made.optimizer.first.double(), 0.1 * clipped, rtol=1e-3, atol=1e-8)
    hand = {
        "forget_loss": seen.forget_loss,
        "retain_loss": seen.retain_loss,
        "forget_squared": f.dot(f),
        "product": f.dot(r),
        "retain_squared": r.dot(r),
        "forget_weight": xi,
        "update_norm": u.norm(),
        "descent": -move.dot(f),
        "move_norm": move.norm(),
    }
    assert list(hand) == list(SCALARS)
    assert scalars == pytest.approx({name: float(value) for name, value in hand.items()}, rel=2e-3)


def test_step_changes_nothing_but_the_factors(every: Tiny) -> None:
    made = stepper(every, blur_method(), count=3)
    frozen = {name: p.clone() for name, p in made.model.named_parameters() if not p.requires_grad}
    before = made.factors.vector.clone()
    with made.computing():
        made.step(range(3), range(3), 1e-2)
    now = dict(made.model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in frozen.items())
    moved = made.factors.views((made.factors.vector - before).abs())
    assert all(float(part.max()) > 0 for part in moved), "every factor is trained"


@pytest.mark.parametrize("architecture", ["llama", "outer"])
def test_rmu_trains_its_layer_and_those_below(request: pytest.FixtureRequest, architecture: str) -> None:
    made = stepper(request.getfixturevalue(architecture), blur_method(forget_loss={"type": "rmu"}), count=3)
    before = {name: p.clone() for name, p in made.model.named_parameters()}
    with made.computing():
        made.step(range(3), range(3), 1e-2)
    moved = {name for name, p in made.model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name and ".layers.0." in name}


def test_reference_is_the_source_and_stays(every: Tiny) -> None:
    made = stepper(every, blur_method(), away=0.0)
    for level, examples in ((made.forget, sequences(every, 8, 0)), (made.retain, sequences(every, 8, 1))):
        expected = plain_nll(source(every)[0], examples).detach()
        torch.testing.assert_close(level.source_nll[:, 0], expected, rtol=1e-5, atol=1e-4)
    before = made.forget.source_nll.clone()
    with made.computing():
        made.step(range(8), range(8), 1e-2)
    assert torch.equal(made.forget.source_nll, before)


def test_windows_of_a_long_record_are_sequences_of_their_own(llama: Tiny) -> None:
    model, tokenizer = load(llama)
    windows = encode_records([{"text": "Who painted the red barn? Cleo Marsh, in 1974."}], tokenizer, 8)
    assert len(windows) > 2
    made = Stepper(model, tokenizer, windows, sequences(llama, 2, 1), blur_method(), 0)
    expected = plain_nll(model, windows).detach()
    torch.testing.assert_close(made.forget.source_nll[:, 0], expected, rtol=1e-5, atol=1e-4)


def test_sequence_nll_does_not_depend_on_the_batch(every: Tiny) -> None:
    model, _ = source(every)
    examples = sequences(every, 8, 0)
    alone = sequence_nll(model, examples, PAD, 1)
    torch.testing.assert_close(sequence_nll(model, examples, PAD, 8), alone, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(alone, plain_nll(model, examples).detach(), rtol=1e-5, atol=1e-4)
    assert not alone.requires_grad


def test_anchor_is_what_the_base_model_says(llama: Tiny) -> None:
    made = stepper(llama, blur_method(anchor="base", forget_loss={"type": "rmu"}), count=4)
    examples = sequences(llama, 4, 0)
    model, _ = load(llama)
    with model.disable_adapter():
        base = plain_nll(model, examples).detach()
    assert made.forget.anchors is not None
    assert made.retain.anchors is None
    torch.testing.assert_close(torch.stack([anchor.sum() for anchor in made.forget.anchors]), base)


def test_at_the_anchor_nothing_is_left_to_forget(llama: Tiny) -> None:
    made = stepper(llama, blur_method(anchor="base"), count=4, away=0.0)
    for name, factor in zip(made.factors.names, made.factors.views(made.factors.vector), strict=True):
        if "lora_B" in name:
            factor.zero_()  # the base model: no token is likelier than under it
    seen = see(made)
    assert not bool(seen.forget.any())
    assert float(seen.retain.norm()) > 0


# Memory.


def limited(model: Any, rows: int) -> list[int]:
    """Let a forward pass of more rows run out of memory; returns where the sizes of all others are noted."""
    sizes: list[int] = []

    def check(_module: Any, _args: Any, kwargs: dict[str, Tensor]) -> None:
        if kwargs["input_ids"].shape[0] > rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(kwargs["input_ids"].shape[0])

    backbone(model).register_forward_pre_hook(check, with_kwargs=True)
    return sizes


@pytest.mark.parametrize("loss", LOSSES, ids=loss_name)
@pytest.mark.parametrize("passes", ["one", "two"])
def test_micro_batch_is_halved_until_it_fits_and_nothing_else_changes(
    llama: Tiny, loss: dict[str, Any], passes: str
) -> None:
    method = blur_method(**loss, passes=passes, forget_batch_size=8, retain_batch_size=8)
    expected = see(stepper(llama, method))
    model, tokenizer = load(llama)
    sizes = limited(model, 5)
    made = Stepper(model, tokenizer, sequences(llama, 8, 0), sequences(llama, 8, 1), method, 5)
    drift([made.factors.vector], 0.05)
    see(made).assert_same(expected)
    rows = (2 if loss.get("forget_loss", {}).get("type") == "idk_dpo" else 1) + (passes == "one")
    assert made.micro_batch_size == {1: 4, 2: 2, 3: 1}[rows]
    assert max(sizes) <= 5


def test_memory_that_runs_out_in_a_backward_pass_leaves_no_half_gradient(llama: Tiny) -> None:
    expected = see(stepper(llama, blur_method(passes="two", micro_batch_size=4)))
    made = stepper(llama, blur_method(passes="two", micro_batch_size=4))
    failing = [3]  # the third micro-batch, once

    def fail(gradient: Tensor) -> None:
        failing[0] -= 1
        if failing[0] == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def hook(_module: Any, _args: Any, output: Any) -> None:
        output[0].register_hook(fail)

    backbone(made.model).register_forward_hook(hook)
    see(made).assert_same(expected)
    assert made.micro_batch_size == 2


@pytest.mark.parametrize("passes", ["one", "two"])
def test_memory_that_does_not_hold_one_sequence_is_an_error(llama: Tiny, passes: str) -> None:
    made = stepper(llama, blur_method(passes=passes, micro_batch_size=4))
    limited(made.model, 0)
    with pytest.raises(torch.OutOfMemoryError):
        see(made)
    assert made.micro_batch_size == 1


def test_last_resort_of_one_pass_is_two(llama: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = see(stepper(llama, blur_method()))
    monkeypatch.setattr(step, "ONE_PASS_DEVICES", ("cpu",))
    made = stepper(llama, blur_method())
    limited(made.model, 1)
    see(made).assert_same(expected)
    assert (made.passes, made.micro_batch_size) == (2, 1)


def test_other_errors_are_not_taken_for_memory(llama: Tiny) -> None:
    made = stepper(llama, blur_method(micro_batch_size=4))

    def fail(*_: Any) -> None:
        raise RuntimeError("a shape does not fit")

    backbone(made.model).register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="does not fit"):
        see(made)
    assert made.micro_batch_size == 4


def test_memory_of_the_host_counts_too(llama: Tiny) -> None:
    made = stepper(llama, blur_method(passes="two", micro_batch_size=2))
    refused: list[int] = []

    def fail(_module: Any, _args: Any, kwargs: dict[str, Tensor]) -> None:
        if kwargs["input_ids"].shape[0] > 1:
            refused.append(1)
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")

    backbone(made.model).register_forward_pre_hook(fail, with_kwargs=True)
    see(made)
    assert refused == [1]
    assert made.micro_batch_size == 1
