from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worker.conftest import FORGET_RECORDS, Tiny, blur_method, encode
from tests.worker.unlearning.engine import load, plain_outputs, sequences, sets
from worker.unlearning.likelihood import sequence_nll
from worker.unlearning.loop import unlearn
from worker.unlearning.lora import (
    AdapterError,
    adapter_state,
    attach_adapter,
    fresh_adapter,
    read_config,
    read_state,
)
from worker.unlearning.models import load_base
from worker.unlearning.step import Stepper

State = dict[str, Tensor]
WEIGHTS = "adapter_model.safetensors"


def copy_with(tiny: Tiny, target: Path, change: Callable[[State], object]) -> Path:
    """A copy of the adapter with changed tensors."""
    shutil.copytree(tiny.adapter, target, dirs_exist_ok=True)
    state = load_file(target / WEIGHTS)
    change(state)
    save_file({key: value.contiguous() for key, value in state.items()}, target / WEIGHTS)
    return target


def configured(tiny: Tiny, target: Path, **fields: Any) -> Path:
    """A copy of the adapter with changed configuration fields."""
    shutil.copytree(tiny.adapter, target, dirs_exist_ok=True)
    (target / "adapter_config.json").write_text(json.dumps(tiny.config() | fields))
    return target


def halve(state: State) -> None:
    state.update({key: value.bfloat16() for key, value in state.items()})


def attach(tiny: Tiny, directory: Path) -> Any:
    base, _ = load_base(tiny.base)
    return attach_adapter(base, directory)


def test_adapter_goes_in_and_out_unchanged(tiny: Tiny) -> None:
    model, _ = tiny.load()
    stored = read_state(tiny.adapter)
    state = adapter_state(model, like=stored)
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[key], stored[key]) for key in stored)
    assert {value.dtype for value in state.values()} == {value.dtype for value in stored.values()}


def test_adapter_changes_what_the_model_says(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    examples = encode(FORGET_RECORDS, tokenizer)
    with model.disable_adapter():
        alone = sequence_nll(model, examples, 2, 8)
    assert not torch.allclose(sequence_nll(model, examples, 2, 8), alone, atol=0.1)


def test_only_factors_are_trainable_and_dropout_is_off(tiny: Tiny) -> None:
    model, _ = tiny.load()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == len(read_state(tiny.adapter))
    assert all("lora_" in name and p.dtype == torch.float32 for name, p in trainable.items())
    assert not any(module.training for module in model.modules())
    assert not model.peft_config["default"].inference_mode, "PEFT would freeze the factors again"


def test_bfloat16_file_is_trained_in_float32_and_written_in_bfloat16(llama: Tiny, tmp_path: Path) -> None:
    adapter = copy_with(llama, tmp_path, halve)
    model = attach(llama, adapter)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    state = adapter_state(model, like=read_state(adapter))
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert all(torch.equal(value, state[key]) for key, value in load_file(adapter / WEIGHTS).items())


def test_factors_on_a_bfloat16_base_are_float32(llama: Tiny) -> None:
    base, _ = load_base(llama.base, dtype=torch.bfloat16)
    model = attach_adapter(base, llama.adapter)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    stored = read_state(llama.adapter)
    assert all(torch.equal(v, stored[k]) for k, v in adapter_state(model, like=stored).items())


def drop_one(state: State) -> None:
    del state[min(state)]


def add_one(state: State) -> None:
    state["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 32)


def add_full_matrix(state: State) -> None:
    state["base_model.model.model.embed_tokens.weight"] = torch.zeros(384, 32)


def change_shape(state: State) -> None:
    key = min(key for key in state if "lora_A" in key)
    state[key] = state[key][:2].clone()


def make_nan(state: State) -> None:
    state[max(state)][0, 0] = float("nan")


def make_infinite(state: State) -> None:
    state[max(state)][0, 0] = float("-inf")


def make_integer(state: State) -> None:
    state[max(state)] = state[max(state)].to(torch.int32)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (drop_one, "1 LoRA tensors of the model have no value"),
        (add_one, "1 tensors of the adapter fit nothing"),
        (add_full_matrix, "1 tensors of the adapter fit nothing"),
        (change_shape, "has shape"),
        (make_nan, "not finite"),
        (make_infinite, "not finite"),
        (make_integer, "not finite"),
        (State.clear, "holds no tensor"),
    ],
)
def test_file_that_does_not_fit_is_refused(
    llama: Tiny, tmp_path: Path, change: Callable[[State], object], reason: str
) -> None:
    with pytest.raises(AdapterError, match=reason):
        attach(llama, copy_with(llama, tmp_path, change))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"r": 8}, "has shape"),
        ({"target_modules": ["q_proj"]}, "fit nothing"),
        ({"target_modules": ["no_such_module"]}, "does not fit the base model"),
        ({"modules_to_save": ["lm_head"]}, "more than LoRA factors"),
        ({"bias": "all"}, "more than LoRA factors"),
        ({"init_lora_weights": "pissa"}, "changes the base model"),
        ({"peft_type": "NO_SUCH"}, "not a PEFT configuration"),
        ({"use_dora": True}, "variant of LoRA .use_dora"),
        ({"lora_bias": True}, "variant of LoRA .lora_bias"),
        ({"target_parameters": ["mlp.experts"]}, "variant of LoRA .target_parameters"),
        ({"alora_invocation_tokens": [5]}, "variant of LoRA .alora"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "variant of LoRA .layer_replication"),
    ],
)
def test_configuration_that_is_no_plain_lora_is_refused(
    llama: Tiny, tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    with pytest.raises(AdapterError, match=reason):
        attach(llama, configured(llama, tmp_path, **fields))


def test_adapter_of_another_kind_is_refused(llama: Tiny, tmp_path: Path) -> None:
    shutil.copytree(llama.adapter, tmp_path, dirs_exist_ok=True)
    fields = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 4}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields))
    with pytest.raises(AdapterError, match="not a LoRA adapter"):
        attach(llama, tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
def test_missing_file_is_named(llama: Tiny, tmp_path: Path, name: str) -> None:
    shutil.copytree(llama.adapter, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    with pytest.raises(AdapterError, match=f"has no {name}"):
        attach(llama, tmp_path)


def test_broken_files_are_refused(llama: Tiny, tmp_path: Path) -> None:
    shutil.copytree(llama.adapter, tmp_path, dirs_exist_ok=True)
    (tmp_path / WEIGHTS).write_bytes(b"no safetensors")
    with pytest.raises(AdapterError, match="cannot be read"):
        read_state(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match="not a PEFT configuration"):
        read_config(tmp_path)


def test_diverged_factors_are_not_written(llama: Tiny) -> None:
    model, _ = llama.load()
    next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("nan")
    with pytest.raises(AdapterError, match="not finite after unlearning"):
        adapter_state(model, like=read_state(llama.adapter))


def test_factors_beyond_the_range_of_the_file_type_are_not_written(llama: Tiny) -> None:
    model, _ = llama.load()
    next(p for p in model.parameters() if p.requires_grad).data[0, 0] = 1e6
    like = {key: value.half() for key, value in read_state(llama.adapter).items()}
    with pytest.raises(AdapterError, match="not finite after unlearning"):
        adapter_state(model, like=like)


# In training the factors are views of one vector.


def test_adapter_in_training_goes_into_a_file_and_back(every: Tiny, tmp_path: Path) -> None:
    model, tokenizer = load(every)
    forget, retain = sets(tokenizer)
    unlearn(model, tokenizer, forget, retain, blur_method(steps=2, learning_rate=1e-2), seed=0)
    state = adapter_state(model, like=read_state(every.adapter))
    shutil.copytree(every.adapter, tmp_path, dirs_exist_ok=True)
    save_file(state, tmp_path / WEIGHTS)
    assert (tmp_path / WEIGHTS).stat().st_size < 1.1 * (every.adapter / WEIGHTS).stat().st_size
    again = attach(every, tmp_path)
    assert all(torch.equal(value, state[key]) for key, value in adapter_state(again).items())
    torch.testing.assert_close(sequence_nll(again, forget, 2, 8), sequence_nll(model, forget, 2, 8))


def test_state_is_a_copy_that_later_steps_do_not_change(llama: Tiny) -> None:
    model, tokenizer = load(llama)
    made = Stepper(model, tokenizer, *sets(tokenizer), blur_method(), 0)
    state = adapter_state(model)
    before = {key: value.clone() for key, value in state.items()}
    made.factors.vector.add_(1.0)
    assert all(torch.equal(value, before[key]) for key, value in state.items())
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in state.values())


def test_adapter_on_the_output_layer_and_the_embeddings_goes_in_and_out(outer: Tiny, embedded: Tiny) -> None:
    for tiny in (outer, embedded):
        stored = read_state(tiny.adapter)
        state = adapter_state(load(tiny)[0], like=stored)
        assert state.keys() == stored.keys()
        assert all(torch.equal(state[key], stored[key]) for key in stored)


# Fresh adapters.


def fresh(tiny: Tiny, **knobs: Any) -> Any:
    base, _ = load_base(tiny.base)
    return fresh_adapter(base, **{"rank": 4, "alpha": 8.0, "seed": 0} | knobs)


def test_fresh_adapter_starts_as_the_base_model(every: Tiny) -> None:
    model = fresh(every)
    base, _ = load_base(every.base)
    examples = sequences(every, 4, 0)
    with torch.no_grad():
        assert torch.equal(plain_outputs(model, examples)[0], plain_outputs(base, examples)[0])
    assert not any(module.training for module in model.modules())
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable.keys() == {name for name, _ in model.named_parameters() if "lora_" in name}
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert not any("lm_head" in name or "embed_out" in name for name in trainable), "the output layer is left alone"


def test_fresh_adapter_is_drawn_by_its_seed_alone(llama: Tiny) -> None:
    torch.manual_seed(1)
    first = adapter_state(fresh(llama))
    drawn = torch.rand(1)
    again, other = adapter_state(fresh(llama)), adapter_state(fresh(llama, seed=1))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn), "the seed of others is left alone"


def test_fresh_adapter_takes_rank_scaling_and_modules(llama: Tiny) -> None:
    model = fresh(llama, rank=3, alpha=12.0, target_modules=["q_proj"])
    state = adapter_state(model)
    assert {"q_proj" in key for key in state} == {True}
    assert {value.shape[0] for key, value in state.items() if "lora_A" in key} == {3}
    assert {layer.scaling["default"] for layer in model.modules() if isinstance(layer, LoraLayer)} == {4.0}


def test_fresh_adapter_on_no_module_is_refused(llama: Tiny) -> None:
    with pytest.raises(AdapterError, match="does not fit the base model"):
        fresh(llama, target_modules=["no_such_module"])


def test_fresh_adapter_on_a_bfloat16_base_is_float32(llama: Tiny) -> None:
    base, _ = load_base(llama.base, dtype=torch.bfloat16)
    model = fresh_adapter(base, rank=2, alpha=2.0, seed=0)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_base_model_is_unlearned_through_a_fresh_adapter(llama: Tiny, tmp_path: Path) -> None:
    model, (_, tokenizer) = fresh(llama, rank=8), load(llama)
    forget, retain = sets(tokenizer)
    with model.disable_adapter():
        base = sequence_nll(model, forget, 2, 8)
    made = Stepper(model, tokenizer, forget, retain, blur_method(), 0)
    torch.testing.assert_close(made.forget.source_nll[:, 0], base)
    method = blur_method(steps=25, learning_rate=5e-3, gamma=0.5, gamma_scale="relative")
    unlearn(model, tokenizer, forget, retain, method, seed=0)
    assert float((sequence_nll(model, forget, 2, 8) - base).min()) > 5
    with model.disable_adapter():
        assert torch.equal(sequence_nll(model, forget, 2, 8), base), "the base itself is as it was"
    model.save_pretrained(str(tmp_path))
    save_file(adapter_state(model), tmp_path / WEIGHTS)
    again = attach(llama, tmp_path)
    torch.testing.assert_close(sequence_nll(again, forget, 2, 8), sequence_nll(model, forget, 2, 8))
