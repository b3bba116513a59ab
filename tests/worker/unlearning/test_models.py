from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from tests.worker.conftest import CONTEXT, VOCABULARY, Tiny, build_model
from tests.worker.unlearning import engine
from tests.worker.unlearning.engine import PAD
from worker.unlearning.batches import Batch, collate
from worker.unlearning.models import (
    Head,
    ModelError,
    backbone,
    causal_model,
    checkpointed_layers,
    context_length,
    decoder_layers,
    hidden_states,
    load_base,
    output_layer,
    pad_id,
)


def collated(tiny: Tiny) -> Batch:
    """Sequences of unequal lengths, some longer than a sliding window."""
    return collate(engine.sequences(tiny, 6, 0), PAD)


def test_hidden_states_are_those_of_a_plain_forward_with_a_mask(every: Tiny) -> None:
    model, _ = engine.source(every)
    examples = engine.sequences(every, 6, 0)
    lengths = {len(example.input_ids) for example in examples}
    assert len(lengths) > 2
    assert max(lengths) > 16, "longer than the sliding window"
    causal = causal_model(model)
    expected, _ = engine.plain_outputs(model, examples)
    hidden = hidden_states(model, collate(examples, PAD))
    layer: Any = output_layer(model)
    assert hidden.shape == (len(expected), layer.weight.shape[1])
    torch.testing.assert_close(Head(causal)(hidden), expected, rtol=1e-4, atol=1e-4)


def test_padding_token_makes_no_difference(every: Tiny) -> None:
    model, _ = engine.source(every)
    examples = engine.sequences(every, 6, 0)
    with torch.no_grad():
        first, second = (hidden_states(model, collate(examples, pad)) for pad in (PAD, 77))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ["mistral", "gemma2"])
def test_sliding_window_is_in_force(architecture: str) -> None:
    """Or the tests above would say nothing about it."""
    model = build_model(architecture).train(False)
    ids = torch.randint(3, 384, (1, 80), generator=torch.Generator().manual_seed(0))
    changed = ids.clone()
    changed[0, 0] += 1
    first, second = (
        hidden_states(model, Batch(tokens, torch.tensor([2, 79]), torch.zeros(2, dtype=torch.int64), torch.zeros(2)))
        for tokens in (ids, changed)
    )
    assert not torch.allclose(first[0], second[0])
    if architecture == "mistral":  # both of its layers look back 15 tokens; Gemma's upper one sees everything
        assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("architecture", ["granite", "gemma2"])
def test_head_scales_and_caps_logits_as_the_architecture_does(architecture: str) -> None:
    model: Any = build_model(architecture).train(False)
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    raw = output_layer(model)(hidden)
    expected = raw / 8.0 if architecture == "granite" else 5.0 * torch.tanh(raw / 5.0)
    torch.testing.assert_close(Head(model)(hidden), expected)


def test_head_takes_any_selection_and_leaves_the_model_whole(every: Tiny) -> None:
    model, _ = engine.load(every)
    shipped, head = backbone(model), Head(model)
    batch = collated(every)
    hidden = hidden_states(model, batch).detach()
    torch.testing.assert_close(head(hidden[3:5]), head(hidden)[3:5], rtol=1e-4, atol=1e-4)
    assert backbone(model) is shipped
    assert not head.trained
    assert head.vocabulary == VOCABULARY


def test_head_leaves_the_model_whole_when_it_fails(llama: Tiny) -> None:
    model, _ = engine.load(llama)
    shipped, head = backbone(model), Head(model)
    with pytest.raises(RuntimeError):
        head(torch.zeros(2, 31))
    assert backbone(model) is shipped


def test_mixture_of_experts_has_a_head() -> None:
    """Its backbone returns more than hidden states."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    model = MixtralForCausalLM(MixtralConfig(**shape)).train(False)
    ids = torch.arange(3, 9)[None]
    batch = Batch(ids, torch.arange(5), ids[0, 1:], torch.zeros(5, dtype=torch.int64))
    logits = Head(model)(hidden_states(model, batch))
    torch.testing.assert_close(logits, model(input_ids=ids).logits[0, :5], rtol=1e-4, atol=1e-5)


def test_decoder_layers_are_found_in_order(every: Tiny) -> None:
    model, _ = engine.source(every)
    layers = decoder_layers(model)
    names = {id(module): name for name, module in model.named_modules()}
    assert [names[id(layer)].rsplit(".", 1)[1] for layer in layers] == ["0", "1"]


def test_architecture_without_layers_to_tell_apart_is_refused(llama: Tiny) -> None:
    model, _ = engine.load(llama)
    causal_model(model).config.num_hidden_layers = 5
    with pytest.raises(ModelError, match="no list of decoder layers"):
        decoder_layers(model)


def test_architecture_without_checkpointing_is_refused(llama: Tiny) -> None:
    model, _ = engine.load(llama)
    inner: Any = backbone(model)
    inner.layers = nn.ModuleList([nn.Linear(2, 2)])
    with (
        pytest.raises(ModelError, match="does not support gradient_checkpointing"),
        checkpointed_layers(model, active=True),
    ):
        pass
    with checkpointed_layers(model, active=False):
        pass


def test_base_comes_frozen_in_evaluation_mode_and_float32(tiny: Tiny) -> None:
    model, _ = load_base(tiny.base)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_base_can_be_loaded_in_bfloat16(llama: Tiny) -> None:
    model, _ = load_base(llama.base, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_missing_directory_is_refused_without_a_download(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_base(tmp_path / "gpt2")


def test_pickled_weights_are_not_opened(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    model = build_model("llama")
    model.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(tmp_path)


def test_code_in_the_directory_is_not_run(tmp_path: Path) -> None:
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": classes}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_context_length_is_read_under_every_name(tiny: Tiny) -> None:
    model, _ = load_base(tiny.base)
    assert context_length(model.config) == CONTEXT


def test_architecture_without_a_limit_has_none() -> None:
    assert context_length(PretrainedConfig()) is None


def test_padding_falls_back_to_the_end_token_then_to_any(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer.backend_tokenizer
    )
    assert pad_id(tokenizer) == 2
    assert pad_id(bare) == 0
    bare.eos_token = "</s>"
    assert pad_id(bare) == 1
