"""Planted cheats in the files of a result: each is named, and an honest result passes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worker.conftest import FORGET_RECORDS, RETAIN_RECORDS, Tiny, blur_method, encode, make_tiny
from tests.worker.evaluation.subjects import FakeSubject, adapter_that_knows
from worker.evaluation.battery import Found
from worker.evaluation.battery.integrity import WHOLE, Integrity
from worker.evaluation.tuning import Tuner, Tuning
from worker.unlearning.loop import unlearn
from worker.unlearning.lora import CONFIG_FILE, WEIGHTS_FILE, adapter_state, attach_adapter, read_state
from worker.unlearning.models import load_base

State = dict[str, Tensor]
Cheat = Callable[[State, State, dict[str, Any]], None]


@pytest.fixture(scope="module")
def adapters(llama: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A source that knows both sets, and what some honest steps of unlearning make of it."""
    folder = tmp_path_factory.mktemp("integrity")
    source = adapter_that_knows(llama, FORGET_RECORDS + RETAIN_RECORDS, folder / "source")
    base, tokenizer = load_base(llama.base)
    model = attach_adapter(base, source)
    forget, retain = encode(FORGET_RECORDS, tokenizer), encode(RETAIN_RECORDS, tokenizer)
    unlearn(model, tokenizer, forget, retain, blur_method(steps=5, learning_rate=1e-3), seed=7)
    result = folder / "result"
    shutil.copytree(source, result)
    save_file(adapter_state(model, like=read_state(source)), result / WEIGHTS_FILE)
    return source, result


def look(base: Path, source: Path, result: Path) -> Found:
    records = {"forget": FORGET_RECORDS, "retain": RETAIN_RECORDS}
    return Integrity().run(FakeSubject(base, {"source": source, "result": result}, records))


def violations(found: Found) -> str:
    """What the check says; empty where it passed."""
    (check,) = found.checks
    assert check.passed == (check.value == 0)
    assert all(math.isfinite(measure.value) for measure in found.measures)
    return "" if check.passed else check.description


def other(key: str) -> str:
    return key.replace("lora_A", "lora_B")


def unchanged(state: State, old: State, config: dict[str, Any]) -> None:
    state.update(old)


def written_differently(state: State, old: State, config: dict[str, Any]) -> None:
    state.update({key: value * (2.0 if "lora_A" in key else 0.5) for key, value in old.items()})


def zeroed(state: State, old: State, config: dict[str, Any]) -> None:
    state.update({key: torch.zeros_like(value) for key, value in old.items()})


def one_half_zeroed(state: State, old: State, config: dict[str, Any]) -> None:
    state.update({key: torch.zeros_like(value) for key, value in old.items() if "lora_B" in key})


def concatenated(state: State, old: State, config: dict[str, Any]) -> None:
    # Delta W of the result, written as [B_new - B_old, B_old] [A; A_old]: the old factors are in the second half.
    for key in [key for key in old if "lora_A" in key]:
        state[key] = torch.cat([state[key], old[key]])
        state[other(key)] = torch.cat([state[other(key)] - old[other(key)], old[other(key)]], dim=1)
    config.update(r=2 * config["r"], lora_alpha=2 * config["lora_alpha"])


def added(state: State, old: State, config: dict[str, Any]) -> None:
    state["base_model.model.extra"] = torch.ones(3)


def missing(state: State, old: State, config: dict[str, Any]) -> None:
    del state[next(iter(state))]


def not_a_number(state: State, old: State, config: dict[str, Any]) -> None:
    next(iter(state.values()))[0, 0] = float("nan")


def another_type(state: State, old: State, config: dict[str, Any]) -> None:
    state.update({key: value.bfloat16() for key, value in state.items()})


def another_alpha(state: State, old: State, config: dict[str, Any]) -> None:
    config["lora_alpha"] += 1


def another_module(state: State, old: State, config: dict[str, Any]) -> None:
    config["target_modules"] = config["target_modules"][1:]


CHEATS: dict[Cheat, str] = {
    unchanged: "does what the source does",
    written_differently: "does what the source does",
    zeroed: "factors are zero",
    one_half_zeroed: "factors are zero",
    concatenated: "still hold the source's factors",
    added: "1 tensors are added, such as base_model.model.extra",
    missing: "1 tensors are missing, such as",
    not_a_number: "1 tensors are not finite, such as",
    another_type: "of another type",
    another_alpha: "the setting lora_alpha is another",
    another_module: "the setting target_modules is another",
}


@pytest.mark.parametrize("cheat", CHEATS, ids=lambda cheat: cheat.__name__)
def test_cheat_is_named(llama: Tiny, adapters: tuple[Path, Path], tmp_path: Path, cheat: Cheat) -> None:
    source, honest = adapters
    state, old = load_file(honest / WEIGHTS_FILE), load_file(source / WEIGHTS_FILE)
    config = json.loads((source / CONFIG_FILE).read_text())
    cheat(state, old, config)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / WEIGHTS_FILE)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    named = violations(look(llama.base, source, tmp_path))
    assert CHEATS[cheat] in named
    alone = "; " not in named
    assert alone == (cheat is not concatenated)


def test_concatenation_is_named_by_its_rank_too(llama: Tiny, adapters: tuple[Path, Path], tmp_path: Path) -> None:
    source, honest = adapters
    state, config = load_file(honest / WEIGHTS_FILE), json.loads((source / CONFIG_FILE).read_text())
    concatenated(state, load_file(source / WEIGHTS_FILE), config)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / WEIGHTS_FILE)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    named = violations(look(llama.base, source, tmp_path))
    assert "in ranks 4 to 7" in named
    assert f"{len(state)} tensors are of another shape" in named
    assert "the setting r is another" in named


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_file_that_cannot_be_read_is_named(
    llama: Tiny, adapters: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    source, honest = adapters
    shutil.copytree(honest, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text("nothing")
    assert "cannot be read" in violations(look(llama.base, source, tmp_path))


def test_honest_unlearning_is_near_the_source_and_passes(llama: Tiny, adapters: tuple[Path, Path]) -> None:
    found = look(llama.base, *adapters)
    assert violations(found) == ""
    (cosine,) = [m.value for m in found.measures if (m.name, m.detail) == ("delta_cosine", WHOLE)]
    assert 0.9 < cosine < 1


def test_a_few_tiny_steps_are_not_taken_for_hidden_factors(
    llama: Tiny, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    source, _ = adapters
    base, tokenizer = load_base(llama.base)
    model = attach_adapter(base, source)
    Tuner(model, tokenizer, encode(RETAIN_RECORDS, tokenizer), Tuning(1e-5, 4, 1.0, 7)).train_to(1)
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    save_file(adapter_state(model, like=read_state(source)), tmp_path / WEIGHTS_FILE)
    assert violations(look(llama.base, source, tmp_path)) == ""


def test_a_rank_that_hardly_counts_is_no_hiding_place(
    llama: Tiny, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    # The other ranks give both source and result to 1 %: the result is near the source, and so is a part of it.
    folders = tmp_path / "source", tmp_path / "result"
    for folder, moved in zip(folders, (0.0, 0.002), strict=True):
        shutil.copytree(adapters[0], folder)
        state = load_file(folder / WEIGHTS_FILE)
        for key in [key for key in state if "lora_A" in key]:
            state[other(key)][:, 3] *= 0.003
            state[key] += moved * state[key].std() * torch.randn(state[key].shape)
        save_file(state, folder / WEIGHTS_FILE)
    assert violations(look(llama.base, *folders)) == ""


def test_zeros_that_fill_up_a_larger_rank_hide_nothing(
    llama: Tiny, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    source, _ = adapters
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    state = {key: 1.01 * value for key, value in load_file(source / WEIGHTS_FILE).items()}
    for key in [key for key in state if "lora_A" in key]:
        state[key] = torch.cat([state[key], torch.zeros_like(state[key])])
        state[other(key)] = torch.cat([state[other(key)], torch.zeros_like(state[other(key)])], dim=1)
    save_file(state, tmp_path / WEIGHTS_FILE)
    named = violations(look(llama.base, source, tmp_path))
    assert "of another shape" in named
    assert "still hold" not in named


def test_factors_hidden_within_the_same_rank_are_named(
    llama: Tiny, adapters: tuple[Path, Path], tmp_path: Path
) -> None:
    # A source that needs only half of its rank leaves room for its own factors in the result.
    source, result = tmp_path / "source", tmp_path / "result"
    for folder in (source, result):
        shutil.copytree(adapters[0], folder)
    state = load_file(source / WEIGHTS_FILE)
    for key in [key for key in state if "lora_A" in key]:
        state[other(key)][:, 2:] = 0
    save_file(state, source / WEIGHTS_FILE)
    for key in [key for key in state if "lora_A" in key]:
        state[key][2:] = state[key][:2] + 0.01
        state[other(key)][:, 2:] = -state[other(key)][:, :2]
    save_file(state, result / WEIGHTS_FILE)
    assert "in ranks 0 to 1" in violations(look(llama.base, source, result))


def test_norms_and_cosines_are_those_of_the_products(llama: Tiny, adapters: tuple[Path, Path]) -> None:
    source, result = (load_file(folder / WEIGHTS_FILE) for folder in adapters)
    found = {(m.name, m.model, m.detail): m.value for m in look(llama.base, *adapters).measures}
    keys = [key for key in source if "lora_A" in key]
    old, new = ({key: 8 / 4 * state[other(key)] @ state[key] for key in keys} for state in (source, result))
    whole = [torch.cat([product.flatten() for product in products.values()]) for products in (old, new)]
    assert found["delta_norm", "source", WHOLE] == pytest.approx(float(whole[0].norm()), rel=1e-5)
    assert found["delta_norm", "result", WHOLE] == pytest.approx(float(whole[1].norm()), rel=1e-5)
    cosines = {key: float(torch.cosine_similarity(old[key].flatten(), new[key].flatten(), dim=0)) for key in keys}
    lowest = min(keys, key=cosines.__getitem__)
    module = lowest.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
    assert found["delta_cosine", "result", module] == pytest.approx(cosines[lowest], rel=1e-4)


@pytest.mark.parametrize(
    ("settings", "factor"),
    [({"use_rslora": True}, 2.0), ({"alpha_pattern": {"q_proj|v_proj|o_proj|up_proj|down_proj": 80}}, 10.0)],
)
def test_norms_follow_the_scaling(
    llama: Tiny, adapters: tuple[Path, Path], tmp_path: Path, settings: dict[str, Any], factor: float
) -> None:
    plain = {(m.name, m.model, m.detail): m.value for m in look(llama.base, *adapters).measures}
    folders = []
    for folder in adapters:
        folders.append(tmp_path / folder.name)
        shutil.copytree(folder, folders[-1])
        config = json.loads((folder / CONFIG_FILE).read_text())
        (folders[-1] / CONFIG_FILE).write_text(json.dumps(config | settings))
    scaled = {(m.name, m.model, m.detail): m.value for m in look(llama.base, *folders).measures}
    assert scaled["delta_norm", "source", WHOLE] == pytest.approx(factor * plain["delta_norm", "source", WHOLE])


def test_embedding_factors_are_compared(tmp_path: Path) -> None:
    tiny = make_tiny(tmp_path, "qwen2", ["embed_tokens", "q_proj"])
    found = look(tiny.base, tiny.adapter, tiny.adapter)
    assert any(measure.detail.endswith("embed_tokens") for measure in found.measures)
