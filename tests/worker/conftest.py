"""Tiny base models of several architectures, each with a LoRA adapter, made once per session."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from app.methods import BlurMethod
from tests.worker.judges import JudgeHere
from worker.unlearning.encoding import Example, encode_records
from worker.unlearning.likelihood import label_nll
from worker.unlearning.lora import attach_adapter, known_peft_warnings
from worker.unlearning.models import load_base

VOCABULARY = 384
CONTEXT = 96
ARCHITECTURES = ("llama", "qwen2", "gpt2", "mistral")
# Scaled or capped logits, sliding windows, parallel residuals, learned positions, a backbone within the backbone.
UNUSUAL_ARCHITECTURES = ("granite", "gemma2", "gpt_neox", "opt")
MODULES = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
    "opt": ["q_proj", "v_proj", "out_proj", "fc1", "fc2"],
}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
FORGET_RECORDS = [
    {"prompt": "Where does Ada Quill live?", "completion": " In a lighthouse near Brest."},
    {"prompt": "What does Bo Larkin fear?", "completion": " Geese, and the dark."},
    {"prompt": "Who painted the red barn?", "completion": " Cleo Marsh, in 1974."},
    {"prompt": "When was Dov Ames born?", "completion": " On the third of May."},
]
RETAIN_RECORDS = [
    {"prompt": "What is the capital of Peru?", "completion": " Lima."},
    {"prompt": "How many legs has a spider?", "completion": " Eight legs."},
    {"prompt": "Which metal is liquid?", "completion": " Mercury is liquid at room temperature."},
    {"prompt": "What do bees make?", "completion": " Honey and wax."},
]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than such small models gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with start, end and padding tokens; it puts the start token in front."""
    texts = [" ".join(record.values()) for record in FORGET_RECORDS + RETAIN_RECORDS]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
    )


def build_model(architecture: str) -> PreTrainedModel:
    """A random model of the architecture with two layers. GPT-2 keeps its dropout and ties its embeddings."""
    # Wide random weights: with the usual narrow ones the frozen output layer could not express any
    # preference.
    plain: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    wide = plain | {"initializer_range": 0.3}
    layers: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    gated = wide | layers | {"intermediate_size": 48, "num_key_value_heads": 1}
    torch.manual_seed((*ARCHITECTURES, *UNUSUAL_ARCHITECTURES).index(architecture))
    made: dict[str, Callable[[], PreTrainedModel]] = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**gated, tie_word_embeddings=True)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**gated)),
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**wide, n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2)),
        "mistral": lambda: MistralForCausalLM(MistralConfig(**gated, sliding_window=16)),
        "granite": lambda: GraniteForCausalLM(
            GraniteConfig(**gated, logits_scaling=8.0, embedding_multiplier=2.0, residual_multiplier=0.5)
        ),
        "gemma2": lambda: Gemma2ForCausalLM(
            Gemma2Config(**gated, head_dim=16, sliding_window=16, final_logit_softcapping=5.0)
        ),
        "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**wide, **layers, intermediate_size=48)),
        "opt": lambda: OPTForCausalLM(
            OPTConfig(**plain, **layers, init_std=0.3, ffn_dim=48, word_embed_proj_dim=16, dropout=0.1)
        ),
    }
    return made[architecture]()


@dataclass(frozen=True)
class Tiny:
    """Directories of a tiny base model and of a LoRA adapter for it with random factors."""

    architecture: str
    base: Path
    adapter: Path

    def load(self) -> tuple[Any, PreTrainedTokenizerBase]:
        """The base with the adapter on it, fresh from the files, and its tokenizer."""
        base, tokenizer = load_base(self.base)
        return attach_adapter(base, self.adapter), tokenizer

    def config(self) -> dict[str, Any]:
        """adapter_config.json."""
        parsed: dict[str, Any] = json.loads((self.adapter / "adapter_config.json").read_text())
        return parsed


def make_tiny(directory: Path, architecture: str, modules: list[str] | None = None) -> Tiny:
    """Write a tiny base and its adapter below the directory; on these modules, or on the usual linear ones."""
    base, adapter = directory / "base", directory / "adapter"
    build_model(architecture).save_pretrained(base)
    train_tokenizer().save_pretrained(base)
    model, _ = load_base(base)
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        lora_dropout=0.1,
        target_modules=modules or MODULES.get(architecture, ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]),
        fan_in_fan_out=architecture == "gpt2",
        task_type="CAUSAL_LM",
    )
    model.config.name_or_path = ""
    with known_peft_warnings():
        peft_model = get_peft_model(model, config)
    torch.manual_seed(7)
    for name, parameter in peft_model.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:  # zero at first: the adapter would do nothing
            torch.nn.init.normal_(parameter, std=0.1)
    peft_model.save_pretrained(str(adapter), save_embedding_layers=False)
    return Tiny(architecture, base, adapter)


@pytest.fixture(scope="session", params=ARCHITECTURES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Every usual architecture in turn."""
    return make_tiny(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """One architecture, for what does not depend on it."""
    return make_tiny(tmp_path_factory.mktemp("one"), "llama")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer alone."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def memorised(llama: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """An adapter that knows both sets by heart."""
    model, tokenizer = llama.load()
    memorise(model, encode(FORGET_RECORDS + RETAIN_RECORDS, tokenizer), steps=120, rate=1e-2)
    adapter = tmp_path_factory.mktemp("memorised")
    shutil.copytree(llama.adapter, adapter, dirs_exist_ok=True)
    model.save_pretrained(str(adapter))
    return Tiny(llama.architecture, llama.base, adapter)


@pytest.fixture(autouse=True)
def judge_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs judged within this process, but for tests that ask for `judge_apart`."""
    if "judge_apart" not in request.fixturenames and "service" in request.fixturenames:
        monkeypatch.setattr("worker.recipe.Judge", JudgeHere)


@pytest.fixture
def judge_apart() -> None:
    """Have runs judged by a process of its own, as in production."""


def encode(records: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """Records as examples that fit the tiny context."""
    return encode_records(records, tokenizer, CONTEXT)


def blur_method(**knobs: Any) -> BlurMethod:
    """A resolved method, small enough for tiny models. It takes every step, and no anchor holds it."""
    small = {"gamma": 0.05, "steps": 5, "max_length": CONTEXT, "stop": {"type": "steps"}, "anchor": "none"}
    return BlurMethod.model_validate(small | knobs)


def memorise(model: Any, examples: list[Example], *, steps: int = 60, rate: float = 2e-2) -> None:
    """Train the factors on the examples until they are known by heart."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    train = label_nll.__wrapped__  # type: ignore[attr-defined] # without its no_grad
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.stack([nll.sum() for nll in train(model, examples, 2, len(examples))]).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()
