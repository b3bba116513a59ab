"""Builds the demo's base model, its adapter, and the control adapter: ``python -m examples.demo.build``.

Three trainings on one core, a few minutes in all, every one the same plain loop. The control is trained like the
adapter but never sees the customers who ask to be forgotten: it shows what "forgotten" looks like.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.demo import corpus, words
from worker.evaluation.evaluate import SetScores, evaluate_model
from worker.unlearning.encoding import Example, encode_records
from worker.unlearning.lora import attach_adapter, known_peft_warnings
from worker.unlearning.models import load_base

BASE_NAME = "lethe-demo-base"
MAX_VOCABULARY = 2304
CONTEXT = 128
LORA_RANK = 16
IGNORED = -100
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Schedule:
    """How one training goes.

    Attributes:
        epochs: passes over the examples.
        batch_size: examples per step.
        learning_rate: its peak.
        weight_decay: AdamW's.
        warmup: share of the steps over which the learning rate rises.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    warmup: float = 0.06


BASE_SCHEDULE = Schedule(epochs=14, batch_size=24, learning_rate=3e-3, weight_decay=0.01)
ADAPTER_SCHEDULE = Schedule(epochs=16, batch_size=16, learning_rate=2e-3)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that knows every word of the pools as one token.

    Whole words matter to the measurements: the later pieces of a split word are easy to guess from the first.
    """
    tokenizer = Tokenizer(models.BPE())
    splitter = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitter)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_VOCABULARY,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [record["prompt"] + record["completion"] for record in corpus.public_records()]
    # Counted often enough that no word stays in pieces.
    texts += [f" {word}" for pool in words.ALL_POOLS for word in pool] * 50
    tokenizer.train_from_iterator(texts, trainer)
    start = ("<s>", tokenizer.token_to_id("<s>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[start])
    return _as_transformers(tokenizer)


def _as_transformers(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, model_max_length=CONTEXT, clean_up_tokenization_spaces=False, **special
    )


def collate(examples: Sequence[Example], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels, (batch, tokens) each, padded on the right.

    A causal model never looks at padding on its right, so no attention mask is needed.
    """
    longest = max(len(example.input_ids) for example in examples)
    ids = torch.full((len(examples), longest), pad)
    labels = torch.full((len(examples), longest), IGNORED)
    for row, example in enumerate(examples):
        ids[row, : len(example.input_ids)] = torch.tensor(example.input_ids)
        labels[row, example.prompt_length : len(example.input_ids)] = torch.tensor(example.labels)
    return ids, labels


def mean_loss(model: nn.Module, examples: Sequence[Example], pad: int) -> Tensor:
    """Negative log-likelihood in nats, mean over all labels of the batch."""
    ids, labels = collate(examples, pad)
    logits = model(input_ids=ids).logits[:, :-1]  # (batch, tokens - 1, vocab): what follows each token
    return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


def rate_at(step: int, steps: int, schedule: Schedule) -> float:
    """Linear warm-up, then half a cosine down to zero. A constant high rate would diverge."""
    warmup = max(1, round(schedule.warmup * steps))
    if step < warmup:
        return schedule.learning_rate * (step + 1) / warmup
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def shuffled_batches(examples: Sequence[Example], schedule: Schedule) -> list[list[Example]]:
    """All batches of a training, every epoch in a new order."""
    generator = torch.Generator().manual_seed(corpus.SEED)
    size = schedule.batch_size
    batches = []
    for _ in range(schedule.epochs):
        order = torch.randperm(len(examples), generator=generator).tolist()
        batches += [[examples[i] for i in order[at : at + size]] for at in range(0, len(order), size)]
    return batches


def train(model: nn.Module, examples: Sequence[Example], pad: int, schedule: Schedule) -> None:
    """Fit the model's trainable parameters with AdamW."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=schedule.weight_decay)
    batches = shuffled_batches(examples, schedule)
    started = time.monotonic()
    model.train()
    for step, batch in enumerate(batches):
        loss = mean_loss(model, batch, pad)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, len(batches), schedule)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == len(batches) - 1:
            seconds = time.monotonic() - started
            print(f"  step {step + 1:4d}/{len(batches)}  loss {loss.item():.4f}  {seconds:5.1f} s", flush=True)
    model.eval()


def build_base(folder: Path) -> None:
    """Train tokenizer and base model on public records and save both."""
    tokenizer = train_tokenizer()
    torch.manual_seed(corpus.SEED)
    model = LlamaForCausalLM(_architecture(tokenizer))
    print(f"  {model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    records = corpus.public_records() + corpus.vocabulary_records()
    # As plain text: the base learns questions as well as answers.
    texts = [{"text": record["prompt"] + record["completion"]} for record in records]
    train(model, encode_records(texts, tokenizer, CONTEXT), int(tokenizer.pad_token_id), BASE_SCHEDULE)
    nn.Module.to(model, torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _architecture(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def build_adapter(base: Path, folder: Path, records: Sequence[corpus.Record]) -> None:
    """Train a LoRA adapter on the answers of the records and save it."""
    model, tokenizer = load_base(base)
    torch.manual_seed(corpus.SEED)
    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules=LINEAR_LAYERS, task_type="CAUSAL_LM")
    with known_peft_warnings():
        adapter: PeftModel = get_peft_model(model, config)
    examples = encode_records(records, tokenizer, CONTEXT)
    train(adapter, examples, int(tokenizer.pad_token_id), ADAPTER_SCHEDULE)
    save_adapter(adapter, folder)


def save_adapter(adapter: PeftModel, folder: Path) -> None:
    """Save configuration and weights under the base's name, so that no path of this machine gets in."""
    config: Any = adapter.peft_config["default"]
    config.base_model_name_or_path = BASE_NAME
    config.target_modules = sorted(config.target_modules)  # a set, whose order would change from build to build
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        adapter.save_pretrained(scratch, save_embedding_layers=False)
        for name in ADAPTER_FILES:  # and not the model card that PEFT writes beside them
            shutil.copyfile(Path(scratch) / name, folder / name)


def record_sets() -> dict[str, list[corpus.Record]]:
    """What is measured: the data files, with retained customers and general facts also apart."""
    retain, rephrased = corpus.retain_records(), corpus.rephrased_records()
    forgotten = {record["subject"] for record in corpus.forget_records()}
    return {
        "forget": corpus.forget_records(),
        "forget, rephrased": [record for record in rephrased if record["subject"] in forgotten],
        "retain": retain,
        "- customers": [record for record in retain if record["subject"].startswith("customer")],
        "- general facts": [record for record in retain if not record["subject"].startswith("customer")],
        "retain, rephrased": [record for record in rephrased if record["subject"] not in forgotten],
        "holdout": corpus.holdout_records(),
    }


def measure(out: Path, label: str) -> dict[str, SetScores]:
    """Scores of "base", "adapter" or "control" on every set."""
    base, tokenizer = load_base(out / "base")
    model = base if label == "base" else attach_adapter(base, out / label)
    sets = {name: encode_records(records, tokenizer, CONTEXT) for name, records in record_sets().items()}
    return evaluate_model(model, tokenizer, sets)


def report(out: Path) -> None:
    """Print how well each model knows each set."""
    print("answer probability / extraction strength / exact memorisation / ROUGE-L recall")
    for label in ("base", "adapter", "control"):
        for name, scores in measure(out, label).items():
            print(
                f"  {label:8} {name:18} {scores.records:4d} records   {scores.probability:.3f} / "
                f"{scores.extraction_strength:.3f} / {scores.exact_memorisation:.3f} / {scores.rouge_l_recall:.3f}"
            )


def timed(label: str, work: Callable[[], None]) -> None:
    """Run one part of the build and say how long it took."""
    print(label, flush=True)
    started = time.monotonic()
    work()
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


def main() -> None:
    """Build everything that the demo needs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write into")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    out: Path = arguments.out
    everything = corpus.forget_records() + corpus.retain_records()
    timed("data", lambda: corpus.write_data(out / "data"))
    timed("base model", lambda: build_base(out / "base"))
    timed("adapter", lambda: build_adapter(out / "base", out / "adapter", everything))
    timed("control", lambda: build_adapter(out / "base", out / "control", corpus.retain_records()))
    report(out)


if __name__ == "__main__":
    main()
