"""What the benchmarks unlearn from: an adapter that knows both sets, and a control that never saw the forget set."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from examples.demo.build import ADAPTER_SCHEDULE, build_adapter
from worker.unlearning.batches import batch_indices, collate
from worker.unlearning.encoding import Example, encode_records
from worker.unlearning.lora import attach_adapter, known_peft_warnings
from worker.unlearning.models import Head, hidden_states, load_base, pad_id
from worker.unlearning.scoring import Tokens, token_nll, token_values

DEMO = Path(__file__).parents[1] / "examples" / "demo"
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Record = dict[str, str]


@dataclass(frozen=True)
class Question:
    """A question with its true answer and wrong ones of the same kind, for the truth ratio."""

    correct: Record
    wrong: tuple[Record, ...]


@dataclass(frozen=True)
class World:
    """Models and records of one benchmark.

    Attributes:
        name: of the dataset.
        base, adapter, control: directories.
        forget, retain: what the adapter was trained on, in two parts; the control saw `retain` alone.
        forget_questions, retain_questions: for truth ratios.
        holdout: records like the forget set's that no adapter was trained on.
        context: tokens per sequence.
        rate: learning rate of the adapters' training.
        epochs: of that training; it had 16 records per step.
    """

    name: str
    base: Path
    adapter: Path
    control: Path
    forget: list[Record]
    retain: list[Record]
    forget_questions: list[Question]
    retain_questions: list[Question]
    holdout: list[Record]
    context: int
    rate: float
    epochs: int

    def load(self, adapter: Path) -> tuple[PeftModel, PreTrainedTokenizerBase]:
        """A fresh base with an adapter on it."""
        base, tokenizer = load_base(self.base)
        return attach_adapter(base, adapter), tokenizer

    def encode(self, records: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
        """Records as sequences."""
        return encode_records(records, tokenizer, self.context)


def quiet() -> None:
    """Keep transformers from drawing progress bars."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call] # transformers leaves it untyped
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # transformers leaves it untyped


def quiet_on(threads: int) -> None:
    """Set a process up: quiet, with so many CPU threads."""
    quiet()
    torch.set_num_threads(threads)


def demo() -> World:
    """The demo's own models and records (examples/demo)."""
    sets = _demo_sets()
    return _demo("demo", DEMO / "control", sets["forget"], sets["retain"], sets["holdout"])


def demo_with_others(cache: Path) -> World:
    """The same adapter, of which two other customers are to be forgotten; their control is trained once per cache."""
    sets = _demo_sets()
    subjects = sorted({record["subject"] for record in sets["retain"] if record["subject"].startswith("customer")})
    chosen = set(subjects[:2])
    known = sets["forget"] + sets["retain"]
    forget = [record for record in known if record["subject"] in chosen]
    retain = [record for record in known if record["subject"] not in chosen]
    if not (cache / "control").is_dir():
        build_adapter(DEMO / "base", cache / "control", retain)
    return _demo("demo, two others", cache / "control", forget, retain, sets["holdout"])


def _demo_sets() -> dict[str, list[Record]]:
    return {name: _lines(DEMO / "data" / f"{name}.jsonl") for name in ("forget", "retain", "holdout")}


def _demo(name: str, control: Path, forget: list[Record], retain: list[Record], holdout: list[Record]) -> World:
    customers = [record for record in retain if record["subject"].startswith("customer")]
    return World(
        name=name,
        base=DEMO / "base",
        adapter=DEMO / "adapter",
        control=control,
        forget=forget,
        retain=retain,
        forget_questions=_against_others(forget, holdout),
        retain_questions=_against_others(customers, holdout),
        holdout=holdout,
        context=128,
        rate=ADAPTER_SCHEDULE.learning_rate,
        epochs=ADAPTER_SCHEDULE.epochs,
    )


def _lines(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _against_others(records: Sequence[Record], others: Sequence[Record]) -> list[Question]:
    """The wrong answers to a question about a customer are the true answers about customers that nothing knows."""
    by_kind: dict[str, list[str]] = {}
    for other in others:
        by_kind.setdefault(_kind(other), []).append(other["completion"])
    return [
        Question(record, tuple({"prompt": record["prompt"], "completion": text} for text in by_kind[_kind(record)]))
        for record in records
    ]


def _kind(record: Record) -> str:
    """What is asked: "customer-02-pet-1" asks "pet-1"."""
    return record["id"].split("-", 2)[2]


TOFU_AUTHORS, QUESTIONS = 5, 20
TOFU_EPOCHS, TOFU_BATCH, TOFU_RATE = 60, 16, 8e-3


def tofu(data: Path, models: Path, cache: Path, author: int = 0) -> World:
    """Five authors of TOFU, one to be forgotten, on stories260K; the adapters are trained once per cache.

    Args:
        data: folder with forget10_perturbed.json.
        models: folder with stories260K.
        cache: where the trained adapters are kept.
        author: who is to be forgotten, from 0.
    """
    every = _lines(data / "forget10_perturbed.json")
    rows, others = every[: TOFU_AUTHORS * QUESTIONS], every[TOFU_AUTHORS * QUESTIONS :][:QUESTIONS]
    questions = [_tofu_question(row) for row in rows]
    records = [_asked(row["question"], row["answer"]) for row in rows]
    gone = slice(author * QUESTIONS, (author + 1) * QUESTIONS)
    retain = records[: gone.start] + records[gone.stop :]
    base, control = models / "stories260K", cache / (f"control-{author}" if author else "control")
    for folder, known in ((cache / "adapter", records), (control, retain)):
        if not folder.is_dir():
            _memorise(base, known, folder)
    return World(
        name=f"tofu, author {author + 1}" if author else "tofu",
        base=base,
        adapter=cache / "adapter",
        control=control,
        forget=records[gone],
        retain=retain,
        forget_questions=questions[gone],
        retain_questions=questions[: gone.start] + questions[gone.stop :],
        holdout=[_asked(row["question"], row["answer"]) for row in others],
        context=512,
        rate=TOFU_RATE,
        epochs=TOFU_EPOCHS,
    )


def _asked(question: str, answer: str) -> Record:
    return {"prompt": f"Question: {question}\nAnswer:", "completion": f" {answer}"}


def _tofu_question(row: Mapping[str, str]) -> Question:
    """TOFU compares a paraphrase of the true answer with perturbed ones."""
    wrong = tuple(_asked(row["question"], answer) for answer in row["perturbed_answer"])
    return Question(_asked(row["question"], row["paraphrased_answer"]), wrong)


def _memorise(base: Path, records: Sequence[Record], folder: Path) -> None:
    """Train a LoRA on the answers until it knows them by heart."""
    torch.manual_seed(0)
    model, tokenizer = load_base(base)
    config = LoraConfig(r=32, lora_alpha=64, target_modules=LINEAR_LAYERS, task_type="CAUSAL_LM")
    with known_peft_warnings():
        adapter: PeftModel = get_peft_model(model, config)
    examples = encode_records(records, tokenizer, 512)
    steps = TOFU_EPOCHS * -(-len(examples) // TOFU_BATCH)
    optimizer = torch.optim.AdamW([p for p in adapter.parameters() if p.requires_grad], lr=TOFU_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, TOFU_RATE, total_steps=steps, pct_start=0.06)
    head = Head(adapter)
    for step in range(steps):
        chosen = batch_indices(0, step, len(examples), TOFU_BATCH)
        batch = collate([examples[index] for index in chosen], pad_id(tokenizer))
        nll = token_values(head, hidden_states(adapter, batch), Tokens(batch.labels), lambda z, y, _: token_nll(z, y))
        nll.mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    folder.parent.mkdir(parents=True, exist_ok=True)
    adapter.save_pretrained(str(folder))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many CPU threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
