"""One run, from top to bottom: prepare, unlearn, evaluate, package, register.

The adapter that is judged is the one that is shipped: its file is written first, then loaded afresh over a fresh
base model, and evaluated. Nothing of a run is visible to anybody before the last transaction.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from app.adapters.archive import file_sha256
from app.adapters.service import WEIGHTS_NAME
from app.evaluations.schemas import EvaluationDocument
from app.settings import Settings
from worker import packaging, reporting
from worker.checkpoints import CheckpointStore
from worker.database import storage, vault
from worker.device import choose_device, choose_dtype, choose_threads, set_up_torch
from worker.evaluation.evaluate import SetScores, base_scores, evaluate_model, sample_examples
from worker.evaluation.gate import Gate, judge
from worker.lease import Lease
from worker.order import JobError, Order, read_order
from worker.progress import Progress
from worker.registering import register, store_evaluation
from worker.reporting import Trained
from worker.unlearning.checkpoint import CheckpointError
from worker.unlearning.encoding import EncodingError, Example, encode_records
from worker.unlearning.loop import Outcome, UnlearningError, unlearn
from worker.unlearning.lora import AdapterError, adapter_state, attach_adapter, read_state
from worker.unlearning.models import LibraryMissing, ModelError, backbone, context_length, load_base
from worker.unlearning.step import is_out_of_memory
from worker.watching import PATIENCE_SECONDS, RunWatcher, earlier_checkpoint

OUT_OF_MEMORY = (
    "the worker has too little memory even for single sequences (micro_batch_size is halved by itself); set "
    "gradient_checkpointing, lower max_length, or run workers with LETHE_FOUR_BIT=true"
)

Examples = Mapping[str, list[Example]]
Scores = dict[str, SetScores]


@dataclass(frozen=True)
class Workbench:
    """What the phases share: hold, inputs, folder, device, progress, and the seconds that each phase took."""

    lease: Lease
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
        bench = Workbench(lease, order, settings, Path(folder), device, threads, progress)
        try:
            _phases(bench)
        except Exception as error:
            explained = _explain(error)
            if explained is None:
                raise
            raise explained from error


def _phases(bench: Workbench) -> None:
    lease, order, progress = bench.lease, bench.order, bench.progress
    with progress.phase("preparing"):
        model, tokenizer = _load(bench, _fetch_source(bench))
        examples = _encode(order, model, tokenizer)
        measured = _measured(order, examples, bench.settings.evaluation_records)
        source = evaluate_model(model, tokenizer, measured)
        base = base_scores(model, tokenizer, measured)
        warnings = _warn(lease, reporting.unknown_records(order, source))
    with progress.phase("unlearning"):
        trained = _train(bench, model, tokenizer, examples)
        lease.progress(step=trained.outcome.steps, total_steps=order.method.steps)
        warnings += _warn(lease, reporting.missed_targets(order, trained.outcome))
        result_folder = _write_result(bench, model)
        del model
    with progress.phase("evaluating"):
        model, tokenizer = _load(bench, result_folder)
        result = evaluate_model(model, tokenizer, measured)
        gate = judge(order.policy, source, result)
    scores = {"base": base, "source": source, "result": result}
    store_evaluation(lease, _document(bench, scores, gate, result_folder, trained, warnings))
    if gate.verdict == "failed":
        lease.end("gate_failed", reporting.why(gate), verdict="failed")
        return
    with progress.phase("packaging"):
        _write_card(bench, result_folder, scores, gate, trained.outcome)
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
    base, tokenizer = load_base(
        bench.order.base_directory,
        device=bench.device,
        dtype=choose_dtype(bench.device),
        four_bit=bench.settings.four_bit,
        spread=bench.settings.spread_model,
    )
    # Every forward pass is a place to stop at: evaluating takes minutes on large sets. All of them, those of
    # generation too, pass through the layers, and training through these alone.
    backbone(base).register_forward_pre_hook(lambda _model, _arguments: bench.progress.check())
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


def _train(bench: Workbench, model: PeftModel, tokenizer: PreTrainedTokenizerBase, examples: Examples) -> Trained:
    """Unlearn, from the newest checkpoint of an earlier attempt if there is one."""
    lease, order = bench.lease, bench.order
    store = CheckpointStore(lease.claim, order.datasets["forget"], storage(), vault())
    watcher = RunWatcher(lease, bench.progress, store, bench.settings.checkpoint_seconds)
    run = partial(
        unlearn,
        model,
        tokenizer,
        examples["forget"],
        examples["retain"],
        order.method,
        seed=order.seed,
        targets=order.policy.targets,
        watcher=watcher,
    )
    with lease.postponing(PATIENCE_SECONDS):
        found = earlier_checkpoint(lease, store)
        if found is not None:
            lease.event(f"going on from step {found.step}, the checkpoint of attempt {found.attempt}")
            try:
                return Trained(run(resume=found.checkpoint), resumed=True)
            except CheckpointError:
                # The adapter got a new head, or the worker another version of torch. The model is as it was.
                lease.event("the checkpoint is of another course of training; starting from the first step")
        return Trained(run(), resumed=False)


def _write_result(bench: Workbench, model: PeftModel) -> Path:
    """Write the trained adapter as it will be shipped, without its card, which needs the numbers."""
    folder = bench.folder / "result"
    state = adapter_state(model, like=read_state(bench.folder / "source"))
    base = bench.order.base
    packaging.write_adapter_directory(
        folder, state, bench.order.source.config, base_model_name=base.name, revision=base.revision, card=""
    )
    return folder


def _write_card(bench: Workbench, folder: Path, scores: Mapping[str, Scores], gate: Gate, training: Outcome) -> None:
    order = bench.order
    facts = packaging.CardFacts(
        job_id=order.job_id,
        base_model_name=order.base.name,
        revision=order.base.revision,
        adapter_name=order.adapter.name,
        method=order.method,
        training=training,
        seed=order.seed,
        policy=order.policy,
        forget=packaging.SetFacts(order.datasets["forget"].id, order.datasets["forget"].records),
        retain=packaging.SetFacts(order.datasets["retain"].id, order.datasets["retain"].records),
        gate=gate,
        scores={"before": scores["source"], "after": scores["result"], "base model alone": scores["base"]},
    )
    (folder / packaging.CARD_FILE).write_text(packaging.model_card(facts), encoding="utf-8", newline="\n")


def _document(
    bench: Workbench,
    scores: Mapping[str, Scores],
    gate: Gate,
    result_folder: Path,
    trained: Trained,
    warnings: list[str],
) -> EvaluationDocument:
    order = bench.order
    return EvaluationDocument.model_validate(
        {
            "source_version": order.source.number,
            "result_weights_sha256": file_sha256(result_folder / WEIGHTS_NAME),
            "models": {
                model: {name: reporting.means(found) for name, found in sets.items()}
                for model, sets in scores.items()
            },
            "gate": asdict(gate),
            "policy": order.policy,
            "method": order.method,
            "seed": order.seed,
            "sampled_to": bench.settings.evaluation_records,
            "environment": reporting.environment(bench.device, bench.threads, bench.settings),
            "durations": bench.progress.durations("preparing", "unlearning", "evaluating"),
            "training": reporting.training(order, trained),
            "warnings": warnings,
            "not_tested": list(reporting.NOT_TESTED),
        }
    )


def _warn(lease: Lease, warnings: list[str]) -> list[str]:
    """Put warnings into the history, too."""
    for warning in warnings:
        lease.warn(warning)
    return warnings


def _explain(error: Exception) -> JobError | None:
    """What a caller is told of an expected error; None for any other."""
    if isinstance(error, MemoryError) or is_out_of_memory(error):
        return JobError("out_of_memory", OUT_OF_MEMORY)
    if isinstance(error, LibraryMissing):
        return JobError("library_missing", str(error))
    if isinstance(error, ModelError):
        # Its text may name a folder of this machine.
        return JobError("model_unusable", "the base model cannot be loaded on the worker")
    codes = {AdapterError: "adapter_unusable", EncodingError: "record_unusable", UnlearningError: "unlearning_failed"}
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), None)
    return JobError(code, str(error)) if code else None
