"""One run, from top to bottom: prepare, unlearn, evaluate, package, register.

The adapter that is judged is the one that is shipped: its file is written first, then loaded afresh over a fresh
base model, and evaluated. Nothing of a run is visible to anybody before the last transaction.
"""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from app.adapters.archive import file_sha256
from app.adapters.service import WEIGHTS_NAME
from app.evaluations.schemas import EvaluationDocument
from app.settings import Settings
from worker import packaging
from worker.database import storage
from worker.device import choose_device, choose_dtype, choose_threads, set_up_torch
from worker.evaluation.evaluate import SetScores, base_scores, evaluate_model, sample_examples
from worker.evaluation.gate import Gate, judge
from worker.lease import Lease
from worker.order import JobError, Order, read_order
from worker.progress import Progress
from worker.registering import register, store_evaluation
from worker.unlearning.encoding import EncodingError, Example, encode_records
from worker.unlearning.loop import UnlearningError, unlearn
from worker.unlearning.lora import AdapterError, adapter_state, attach_adapter, read_state
from worker.unlearning.models import ModelError, context_length, load_base, pad_id

NOT_TESTED = (
    "whether further fine-tuning, on kept or on forgotten records, brings the forgotten ones back",
    "paraphrased, translated, reversed or few-shot prompts, and sampled instead of greedy answers",
    "membership inference",
    "quantised or merged weights",
)

Examples = Mapping[str, list[Example]]
Scores = dict[str, SetScores]


@dataclass(frozen=True)
class Workbench:
    """What the phases share: inputs, folder, device, progress, and the seconds that each phase took."""

    order: Order
    settings: Settings
    folder: Path
    device: torch.device
    threads: int
    progress: Progress


def carry_out(lease: Lease, settings: Settings) -> None:
    """Carry out a claimed run to its end.

    Raises:
        JobError: the run cannot succeed.
        worker.lease.Stop: the run must not go on in this process.
    """
    threads = choose_threads(settings.torch_threads)
    set_up_torch(threads)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call] # transformers leaves it untyped
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call] # transformers leaves it untyped
    order = read_order(lease.claim)
    progress = Progress(lease)
    lease.progress(source_version=order.source.number)
    with tempfile.TemporaryDirectory(prefix="lethe-") as folder:
        device = choose_device(settings.device)
        bench = Workbench(order, settings, Path(folder), device, threads, progress)
        try:
            _phases(bench, lease)
        except (AdapterError, EncodingError, UnlearningError) as error:
            raise JobError(_code(error), str(error)) from error
        except ModelError as error:
            # Its text may name a folder of this machine.
            raise JobError("model_unusable", "the base model cannot be loaded on the worker") from error
        except torch.OutOfMemoryError as error:
            raise JobError("out_of_memory", "the device has too little memory; lower micro_batch_size") from error


def _phases(bench: Workbench, lease: Lease) -> None:
    order, progress = bench.order, bench.progress
    with progress.phase("preparing"):
        model, tokenizer = _load(bench, _fetch_source(bench))
        examples = _encode(order, model, tokenizer)
        measured = _measured(order, examples, bench.settings.evaluation_records)
        source = evaluate_model(model, tokenizer, measured)
        base = base_scores(model, tokenizer, measured)
        warnings = _warnings(order, source)
        for warning in warnings:
            lease.warn(warning)
    with progress.phase("unlearning"):
        unlearn(
            model,
            pad_id(tokenizer),
            examples["forget"],
            examples["retain"],
            order.method,
            seed=order.seed,
            on_step=progress.step,
        )
        result_folder = _write_result(bench, model)
        del model
    with progress.phase("evaluating"):
        model, tokenizer = _load(bench, result_folder)
        result = evaluate_model(model, tokenizer, measured)
        gate = judge(order.policy, source, result)
    scores = {"base": base, "source": source, "result": result}
    store_evaluation(lease, _document(bench, scores, gate, result_folder, warnings))
    if gate.verdict == "failed":
        lease.end("gate_failed", _why(gate), verdict="failed")
        return
    with progress.phase("packaging"):
        _write_card(bench, result_folder, scores, gate)
    with progress.phase("registering"):
        register(lease, order, result_folder, storage())


def _fetch_source(bench: Workbench) -> Path:
    folder = bench.folder / "source"
    folder.mkdir()
    try:
        storage().fetch(bench.order.source.weights_key, folder / WEIGHTS_NAME)
    except FileNotFoundError:
        raise JobError("adapter_missing", "the bytes of the adapter's head are no longer held") from None
    (folder / packaging.CONFIG_FILE).write_text(json.dumps(bench.order.source.config))
    return folder


def _load(bench: Workbench, adapter: Path) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """A fresh base model with an adapter on it."""
    dtype = choose_dtype(bench.device)
    base, tokenizer = load_base(bench.order.base_directory, device=bench.device, dtype=dtype)
    # Every forward pass is a place to stop at: evaluating takes minutes on large sets.
    base.register_forward_pre_hook(lambda _model, _arguments: bench.progress.check())
    return attach_adapter(base, adapter), tokenizer


def _encode(order: Order, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> Examples:
    context = context_length(model.config)
    longest = min(order.method.max_length, context) if context else order.method.max_length
    return {name: encode_records(order.records(name), tokenizer, longest) for name in order.datasets}


def _measured(order: Order, examples: Examples, limit: int) -> Examples:
    """The records that are evaluated: every one to forget, and a seeded sample of the others."""
    return {
        name: found if name == "forget" else sample_examples(found, limit, order.seed)
        for name, found in examples.items()
    }


def _write_result(bench: Workbench, model: PeftModel) -> Path:
    """Write the trained adapter as it will be shipped, without its card, which needs the numbers."""
    folder = bench.folder / "result"
    state = adapter_state(model, like=read_state(bench.folder / "source"))
    base = bench.order.base
    packaging.write_adapter_directory(
        folder, state, bench.order.source.config, base_model_name=base.name, revision=base.revision, card=""
    )
    return folder


def _write_card(bench: Workbench, folder: Path, scores: Mapping[str, Scores], gate: Gate) -> None:
    order = bench.order
    facts = packaging.CardFacts(
        job_id=order.job_id,
        base_model_name=order.base.name,
        revision=order.base.revision,
        adapter_name=order.adapter.name,
        method=order.method,
        seed=order.seed,
        policy=order.policy,
        forget=packaging.SetFacts(order.datasets["forget"].id, order.datasets["forget"].records),
        retain=packaging.SetFacts(order.datasets["retain"].id, order.datasets["retain"].records),
        gate=gate,
        scores={"before": scores["source"], "after": scores["result"], "base model alone": scores["base"]},
    )
    (folder / packaging.CARD_FILE).write_text(packaging.model_card(facts), encoding="utf-8", newline="\n")


def _document(
    bench: Workbench, scores: Mapping[str, Scores], gate: Gate, result_folder: Path, warnings: list[str]
) -> EvaluationDocument:
    order = bench.order
    return EvaluationDocument.model_validate(
        {
            "source_version": order.source.number,
            "result_weights_sha256": file_sha256(result_folder / WEIGHTS_NAME),
            "models": {
                model: {name: _means(found) for name, found in sets.items()} for model, sets in scores.items()
            },
            "gate": asdict(gate),
            "policy": order.policy,
            "method": order.method,
            "seed": order.seed,
            "sampled_to": bench.settings.evaluation_records,
            "environment": _environment(bench),
            "durations": bench.progress.durations("preparing", "unlearning", "evaluating"),
            "warnings": warnings,
            "not_tested": list(NOT_TESTED),
        }
    )


def _means(scores: SetScores) -> dict[str, float]:
    fields = asdict(scores)
    del fields["per_record"]
    return fields


def _environment(bench: Workbench) -> dict[str, object]:
    on_gpu = bench.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(bench.device) if on_gpu else f"cpu ({platform.machine()})",
        "threads": bench.threads,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft", "lethe")},
    }


def _warnings(order: Order, source: Scores) -> list[str]:
    """What a verdict does not say: records that the source never showed cannot be seen to be forgotten."""
    known = judge(order.policy, source, source)
    if any(check.name.startswith("forget_") and not check.passed for check in known.checks):
        return []
    return [
        f"before unlearning the adapter did not show these records (answer probability "
        f"{source['forget'].probability:.3f}), so that passing the gate says little; check that the prompts are "
        "written as in training"
    ]


def _why(gate: Gate) -> str:
    missed = [
        f"{check.name} is {'not measurable' if check.value is None else format(check.value, '.3f')}, "
        f"must be {check.comparison} {check.limit:g}"
        for check in gate.checks
        if not check.passed
    ]
    return "the gate failed: " + "; ".join(missed)


def _code(error: Exception) -> str:
    codes = {AdapterError: "adapter_unusable", EncodingError: "record_unusable", UnlearningError: "unlearning_failed"}
    return next(code for kind, code in codes.items() if isinstance(error, kind))
