from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from tests.worker.conftest import CONTEXT, FORGET_RECORDS, RETAIN_RECORDS, Tiny, build_model, encode
from worker.unlearning.batches import Batch, collate
from worker.unlearning.models import (
    ModelError,
    context_length,
    label_logits,
    load_base,
    output_layer,
    pad_id,
)


def plain_logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """All logits, then those of the label positions."""
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
    logits: torch.Tensor = output.logits.flatten(0, 1)[batch.positions]
    return logits


def test_label_logits_are_those_of_the_plain_forward(tiny: Tiny) -> None:
    model, tokenizer = tiny.load()
    batch = collate(encode(FORGET_RECORDS + RETAIN_RECORDS, tokenizer), 2)
    narrowed = label_logits(model, batch)
    torch.testing.assert_close(narrowed, plain_logits(model, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scaled", ["granite", "gemma2"])
def test_scaled_and_capped_logits_stay_exact(scaled: str, tokenizer: PreTrainedTokenizerFast) -> None:
    shape: dict[str, Any] = {"vocab_size": 384, "hidden_size": 32, "intermediate_size": 48, "head_dim": 16}
    shape |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 2}
    shape |= {"bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.3}
    torch.manual_seed(0)
    model: Any = (
        GraniteForCausalLM(GraniteConfig(**shape, logits_scaling=8.0))
        if scaled == "granite"
        else Gemma2ForCausalLM(Gemma2Config(**shape, final_logit_softcapping=3.0))
    )
    model.eval()
    batch = collate(encode(FORGET_RECORDS, tokenizer), 2)
    narrowed = label_logits(model, batch)
    torch.testing.assert_close(narrowed, plain_logits(model, batch), rtol=1e-5, atol=1e-5)
    head = model.get_output_embeddings()
    hidden = model.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    unscaled = head(hidden.flatten(0, 1)[batch.positions])
    assert not torch.allclose(narrowed, unscaled), "the fixture must scale its logits"


def test_output_layer_is_fed_label_positions_only_and_left_without_hooks(llama: Tiny) -> None:
    model, tokenizer = llama.load()
    batch = collate(encode(FORGET_RECORDS, tokenizer), 2)
    fed: list[torch.Size] = []
    head = output_layer(model)
    watch = head.register_forward_hook(lambda _head, inputs, _output: fed.append(inputs[0].shape))
    label_logits(model, batch)
    watch.remove()
    assert fed == [torch.Size([len(batch.labels), 32])]
    assert not head._forward_pre_hooks


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
